"""E2B's way to describe a template, in the words of an image's definition."""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ConfigDict, Field, SecretStr

from corral.facades.e2b.body import Body
from corral.facades.e2b.refusal import Refused
from corral.schema.image import Definition

BASE_IMAGES = frozenset({"e2bdev/base", "e2bdev/base:latest", "e2bdev/code-interpreter", "e2bdev/code-interpreter:latest"})
"""What E2B calls its own images: Corral's of the same use stand for them."""
CPU, MEMORY, DISK = "corral.e2b.cpu", "corral.e2b.memory", "corral.e2b.disk"
"""Labels that say of what size sandboxes of a template are."""
_NAME = re.compile(r"[a-z0-9]([a-z0-9_-]*[a-z0-9])?")
_TAG = re.compile(r"[a-z0-9_][a-z0-9_.-]*")
_HOME = "/home/user"
_SHELL = ["/bin/bash", "-l", "-c"]
_USER_THERE = (
    "id user >/dev/null 2>&1 || useradd --create-home --shell /bin/bash user 2>/dev/null"
    " || adduser -D -s /bin/sh user; [ -x /bin/bash ] || ln -s /bin/sh /bin/bash; mkdir -p /home/user; chown user /home/user"
)
"""Commands run as `user`, whatever the image; /bin/bash is what they are given to."""


_DIRECTORY = (
    'd={path}; n=$d; while p=$(dirname -- "$n"); [ "$p" != "$n" ] && [ ! -d "$p" ]; do n=$p; done;'
    ' [ -d "$d" ] || {{ mkdir -p -- "$d" && chown -R -- {owner} "$n"; }}'
)
"""A working directory that is not there is made, and is the user's, with those above it that were not there either."""


class Registry(Body):
    """How to log in where an image is kept."""

    model_config = ConfigDict(hide_input_in_errors=True)

    type: Literal["registry", "gcp", "aws"]
    username: str | None = None
    password: SecretStr | None = None
    service_account_json: SecretStr | None = None
    aws_access_key_id: str | None = Field(default=None, alias="awsAccessKeyId")
    aws_secret_access_key: SecretStr | None = None
    aws_region: str | None = None


class Step(Body):
    type: str
    args: list[str] = Field(default_factory=list[str])
    files_hash: str | None = Field(default=None, alias="filesHash")
    force: bool = False
    force_upload: bool | None = None
    resolve_symlinks: bool | None = None
    gzip: bool | None = None
    """These three say what the client does when it sends the files; it sends them along."""


class Template(Body):
    """POST /v2/templates/{template}/builds/{build}."""

    from_image: str | None = None
    from_template: str | None = None
    from_image_registry: Registry | None = None
    force: bool = False
    steps: list[Step] = Field(default_factory=list[Step])
    start_cmd: str | None = None
    ready_cmd: str | None = None


@dataclass(frozen=True)
class Recipe:
    """`places`: what E2B calls the step for which each of ours that makes files is done: `base`, its number from 1, or `finalize`."""

    definition: Definition
    places: tuple[str, ...] = ()
    password: SecretStr | None = None
    """The registry's."""

    def place(self, number: int | None) -> str:
        """Of the step with this number from 1; of none it is what the build starts from."""
        return self.places[number - 1] if number and number <= len(self.places) else "base"


def recipe(wanted: Template, *, is_here: Callable[[str], bool], upload: Callable[[str], str], size: Mapping[str, int | None], project: str) -> Recipe:
    """The same in Corral's words. `is_here`: whether the project has a template of an image's name, which then stands for it. `upload` gives the digest of files that were sent under E2B's hash; `size` is what its sandboxes get, by label. Raises `Refused`."""
    username, password = _login(wanted.from_image_registry)
    known = True
    match wanted.from_image, wanted.from_template:
        case None, str() as template:
            source: dict[str, Any] = {"kind": "image", "ref": named(template, project).removesuffix(":default")}
        case str() as ref, None if username is not None:
            known, source = False, {"kind": "registry", "ref": ref, "username": username}
        case str() as ref, None if ref in BASE_IMAGES:
            source = {"kind": "image", "ref": "code-interpreter" if "interpreter" in ref else "base"}
        case str() as ref, None:
            known, source = False, {"kind": "image" if is_here(ref) else "registry", "ref": ref}
        case _:
            raise Refused(400, "give either fromImage or fromTemplate")
    steps: list[dict[str, Any]] = [] if known else [{"do": "run", "command": _USER_THERE}, {"do": "user", "user": "user"}, {"do": "workdir", "path": _HOME}]
    places = _places(steps, "base")
    user = "user"
    for number, step in enumerate(wanted.steps, 1):
        made, user = _step(step, user, upload)
        steps += made
        places += _places(made, str(number))
    labels = {name: str(value) for name, value in size.items() if value is not None}
    if labels:
        steps.append({"do": "label", "labels": labels})
    if wanted.start_cmd:
        ready = {"command": wanted.ready_cmd} if wanted.ready_cmd else None
        steps.append({"do": "start", "command": wanted.start_cmd, "ready": ready})
    elif wanted.ready_cmd:
        steps.append({"do": "run", "command": wanted.ready_cmd, "shell": _SHELL})
        places.append("finalize")
    return Recipe(Definition.model_validate({"source": source, "steps": steps}), tuple(places), password)


def _login(registry: Registry | None) -> tuple[str | None, SecretStr | None]:
    """Who logs in, and with what. Raises `Refused`."""
    match registry:
        case None:
            return None, None
        case Registry(type="registry", username=str() as username, password=SecretStr() as password):
            return username, password
        case Registry(type="gcp", service_account_json=SecretStr() as key):
            return "_json_key", key
        case Registry(type="aws"):
            raise Refused(
                400, "fromImageRegistry: AWS gives passwords for 12 hours to who asks its API: give one (`aws ecr get-login-password`) with the username AWS"
            )
        case _:
            raise Refused(400, f"fromImageRegistry: what logs in is missing from {registry.type}")


def _places(steps: Sequence[Mapping[str, Any]], place: str) -> list[str]:
    """The name for each that makes files: only these are counted."""
    return [place for step in steps if step["do"] in ("run", "copy")]


def _step(step: Step, user: str, upload: Callable[[str], str]) -> tuple[list[dict[str, Any]], str]:
    """The steps for one of E2B's, and who runs the next one."""
    args = step.args
    match step.type.upper():
        case "RUN" if args:
            run = {"do": "run", "command": args[0], "shell": _SHELL, "force": step.force}
            other = args[1] if len(args) > 1 and args[1] else user
            return ([run] if other == user else [{"do": "user", "user": other}, run, {"do": "user", "user": user}]), user
        case "COPY" if len(args) >= 2:
            return [_copy(step, user, upload)], user
        case "ENV" if args and len(args) % 2 == 0:
            return [{"do": "env", "env": dict(zip(args[::2], args[1::2], strict=True))}], user
        case "WORKDIR" if args:
            # With the group that is the user's own, which chown does not know of a number.
            owner = user if ":" in user or user.isdecimal() else f"{user}:"
            making = {"do": "run", "command": _DIRECTORY.format(path=shlex.quote(args[0]), owner=shlex.quote(owner)), "shell": ["/bin/sh", "-c"]}
            made = [] if user == "root" else [{"do": "user", "user": "root"}, making, {"do": "user", "user": user}]
            return [*made, {"do": "workdir", "path": args[0]}], user
        case "USER" if args:
            return [{"do": "user", "user": args[0]}], args[0]
        case _:
            raise Refused(400, f"steps: {step.type[:40]} with {len(args)} arguments is not known here")


def _copy(step: Step, user: str, upload: Callable[[str], str]) -> dict[str, Any]:
    source, target, owner, mode = [*step.args, "", ""][:4]
    if step.files_hash is None:
        raise Refused(400, f"steps: COPY of {source[:80]} without filesHash")
    many = any(character in source for character in "*?[")
    return {
        "do": "copy",
        "sources": [posixpath.normpath(source)],
        "target": target.rstrip("/") + "/" if many or target.endswith("/") else target,
        "upload": upload(step.files_hash),
        "owner": owner or user,
        "mode": int(mode, 8) if mode else None,
    }


def names_of(name: str, tags: Sequence[str], project: str) -> tuple[str, list[str]]:
    """A template's name and tags as Corral has them: in lower case, without the project before a slash; `default` is `latest`. Raises `Refused`."""
    plain, colon, tag = named(name, project).partition(":")
    if not _NAME.fullmatch(plain) or (colon and not tag):
        raise Refused(400, f"invalid template ID: {name[:80]!r}; use lower case letters, digits, _ and -, and a tag behind a colon")
    return plain, list(dict.fromkeys(native_tag(one) for one in ([tag] if tag else []) + list(tags))) or [native_tag("default")]


def named(ref: str, project: str) -> str:
    """A reference to a template as Corral has it. Raises `Refused` for a name that is another's."""
    cleaned = ref.strip().lower()
    namespace, slash, rest = cleaned.partition("/")
    if not slash:
        return cleaned
    if namespace != project.lower():
        raise Refused(400, f"namespace '{namespace[:80]}' must match your team '{project}'")
    return rest


def native_tag(tag: str) -> str:
    """Raises `Refused`."""
    cleaned = tag.strip().lower()
    if cleaned and not _TAG.fullmatch(cleaned):
        raise Refused(400, f"invalid tag: {tag[:80]!r}")
    return "latest" if cleaned in ("default", "") else cleaned
