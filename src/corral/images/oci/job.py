"""What the process of an import or export is told, and how it is started and heard. Passwords go by its standard input, which nobody else sees."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from corral import spawn
from corral.errors import BY_CODE, InternalError
from corral.images.oci.documents import Platform
from corral.images.oci.reference import Reference
from corral.images.oci.tally import Limits

_LONGEST_NOTE = 1000


@dataclass(frozen=True)
class Pull:
    """Import an image of a registry. `layers`: the directory of all layers, `aside`: the name of a workplace in it, `own`: layers there that the project has had."""

    layers: str
    aside: str
    reference: Reference
    platform: Platform
    mirrors: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    own: list[str] = field(default_factory=list[str])
    limits: Limits = field(default_factory=Limits)
    do: Literal["pull"] = "pull"


@dataclass(frozen=True)
class Unpack:
    """Import the image in an archive."""

    layers: str
    aside: str
    path: str
    platform: Platform
    own: list[str] = field(default_factory=list[str])
    limits: Limits = field(default_factory=Limits)
    do: Literal["unpack"] = "unpack"


@dataclass(frozen=True)
class UnpackRootfs:
    """Import the root file system in a tar file."""

    layers: str
    aside: str
    path: str
    limits: Limits = field(default_factory=Limits)
    do: Literal["rootfs"] = "rootfs"


@dataclass(frozen=True)
class Export:
    """Write an OCI archive to `path`. `layers`: mounted directories, from the lowest up; `config`: how processes start, in OCI's words; `name`: as NAME:TAG."""

    layers: list[str]
    path: str
    config: dict[str, Any]
    name: str | None
    created: str
    do: Literal["export"] = "export"


Job = Annotated[Pull | Unpack | UnpackRootfs | Export, Field(discriminator="do")]
_job: TypeAdapter[Pull | Unpack | UnpackRootfs | Export] = TypeAdapter(Job)


def read(text: str) -> Pull | Unpack | UnpackRootfs | Export:
    return _job.validate_json(text)


async def run(job: Pull | Unpack | UnpackRootfs | Export, say: Callable[[str], None], had: Callable[[str], None] = lambda _layer: None) -> dict[str, Any]:
    """Do it in a process of its own, which is killed when this is cancelled; what it came to. `had` is told of layers as they are there. Raises its error."""
    rest: list[str] = []
    async with spawn.conversation([sys.executable, "-m", "corral.images.oci"], input=_job.dump_json(job)) as output:
        while line := await output.readline():
            try:
                told = json.loads(line)
            except ValueError:
                rest.append(line.decode(errors="replace"))
                continue
            match told:
                case {"note": str(text)}:
                    say(text[:_LONGEST_NOTE])
                case {"layer": str(name)}:
                    had(name)
                case {"done": dict(found)}:  # pyright: ignore[reportUnknownVariableType] - its own
                    return found  # pyright: ignore[reportUnknownVariableType]
                case {"error": dict(error)}:  # pyright: ignore[reportUnknownVariableType]
                    raise _raised(error)  # pyright: ignore[reportUnknownArgumentType]
                case _:
                    rest.append(line.decode(errors="replace"))
    raise InternalError(f"the process of an import ended without an answer: {''.join(rest)[-500:].strip()}", hint="was the machine short of memory?")


def _raised(error: dict[str, Any]) -> Exception:
    kind = BY_CODE.get(str(error["code"]), InternalError)
    return kind(str(error["message"]), hint=error["hint"], details=dict(error["details"]))
