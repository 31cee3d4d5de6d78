"""`RUN --mount=…`: caches, secrets and files that are there only while a command runs."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from corral.errors import Unsupported
from corral.images.dockerfile.syntax import Instruction
from corral.schema.image import Bind, BuildSecret

_SECRET = re.compile(r"[A-Za-z0-9_-]{1,128}")
_CACHE = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")


@dataclass
class Mounts:
    """Of one RUN."""

    caches: dict[str, str] = field(default_factory=dict[str, str])
    secrets: list[BuildSecret] = field(default_factory=list[BuildSecret])
    binds: list[Bind] = field(default_factory=list[Bind])


def mounts(instruction: Instruction, expand: Callable[[str], str], bind: Callable[[str, str, str | None], Bind], warn: Callable[[str], None]) -> Mounts:
    """`bind` makes one of a target, a source and the stage or image it is of; `warn` takes what changes nothing here. Raises `InvalidArgument`, `Unsupported`."""
    found = Mounts()
    for name, text in instruction.flags:
        if name == "mount":
            _one(instruction, _fields(instruction, expand(text)), found, bind, warn)
    return found


def _one(instruction: Instruction, fields: dict[str, str], found: Mounts, bind: Callable[[str, str, str | None], Bind], warn: Callable[[str], None]) -> None:
    kind = fields.pop("type", "bind")
    target = fields.pop("target", None) or fields.pop("dst", None) or fields.pop("destination", None)
    match kind:
        case "cache":
            if target is None:
                raise instruction.wrong("--mount=type=cache needs a target")
            if "from" in fields or "source" in fields:
                raise Unsupported(f"Dockerfile line {instruction.line}: a cache can't begin with an image's files", hint="copy them in the command")
            found.caches[target] = _cache_name(fields.pop("id", target))
            if (sharing := fields.pop("sharing", "shared")) != "shared":
                warn(f"line {instruction.line}: sharing={sharing} of a cache is not kept: builds at once share it")
            if _is_on(fields.pop("ro", "false")) or _is_on(fields.pop("readonly", "false")):
                raise Unsupported(f"Dockerfile line {instruction.line}: a cache can't be read-only", hint="leave readonly out")
            if {"mode", "uid", "gid"} & fields.keys():
                warn(f"line {instruction.line}: a cache belongs to the first who uses it, whatever its uid, gid and mode say")
            _only(instruction, fields, "mode", "uid", "gid")
        case "secret":
            id = fields.pop("id", None) or (target or "").rpartition("/")[2]
            if not _SECRET.fullmatch(id):
                raise instruction.wrong(f"{id!r} is no name of a secret", hint="secrets have letters, digits, underscores and hyphens in their names")
            variable = fields.pop("env", None)
            path = target if target is not None or variable is not None else f"/run/secrets/{id}"
            found.secrets.append(BuildSecret(name=id, path=path, env=variable, required=_is_on(fields.pop("required", "false"))))
            if {"mode", "uid", "gid"} & fields.keys():
                warn(f"line {instruction.line}: the file of a secret belongs to who runs the command, whatever its uid, gid and mode say")
            _only(instruction, fields, "mode", "uid", "gid")
        case "bind":
            if target is None:
                raise instruction.wrong("--mount=type=bind needs a target")
            found.binds.append(bind(target, fields.pop("source", None) or fields.pop("src", None) or ".", fields.pop("from", None)))
            _only(instruction, fields, "rw", "readwrite", "ro", "readonly")
        case _:
            raise Unsupported(f"Dockerfile line {instruction.line}: --mount=type={kind} can't be had", hint="there are cache, secret and bind")


def _fields(instruction: Instruction, text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if not key:
            raise instruction.wrong(f"--mount={text[:100]} is not understood")
        found[key.strip().lower()] = value.strip() if equals else "true"
    return found


def _only(instruction: Instruction, fields: dict[str, str], *allowed: str) -> None:
    for name in fields:
        if name not in allowed:
            raise instruction.wrong(f"--mount has no option {name!r}")


def _is_on(text: str) -> bool:
    return text.lower() in ("true", "1", "yes", "on")


def _cache_name(id: str) -> str:
    """As the name of a volume: the id itself if it can be one, else a digest."""
    return id if _CACHE.fullmatch(id) else hashlib.sha256(id.encode()).hexdigest()[:16]
