"""Volumes as the API shows them, and what can be asked of them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import AfterValidator, Field

from corral.schema.file import At, Path
from corral.schema.model import Answer, Request

MOST = 16
"""Volumes of one sandbox."""
VolumeName = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?$")]


def _place(path: str) -> str:
    parts = path.split("/")
    if not path.startswith("/") or "\0" in path or any(part in ("", ".", "..") for part in parts[1:]):
        raise ValueError(f"{path[:80]!r} is not an absolute path below /, without . and .. and a slash at its end")
    if parts[1] in ("proc", "sys", "dev"):
        raise ValueError(f"{path[:80]!r} is a place of the system's own")
    return path


def _within(path: str) -> str:
    if path and ("\0" in path or any(part in ("", ".", "..") for part in path.split("/"))):
        raise ValueError(f"{path[:80]!r} is not a path within a volume, without . and .. and a slash at its beginning or end")
    return path


Place = Annotated[str, Field(max_length=1024), AfterValidator(_place)]


class VolumeMount(Request):
    """A volume in a sandbox."""

    volume: str = Field(min_length=1, max_length=63, description="its name or id")
    read_only: bool = False
    sub_path: Annotated[str, Field(max_length=1024), AfterValidator(_within)] = Field(
        "", description="only this directory of it; one that is missing is made, unless it is read-only"
    )


VolumeMounts = Annotated[dict[Place, VolumeMount], Field(max_length=MOST)]


class VolumeAttach(VolumeMount):
    """POST /v1/sandboxes/{sandbox}/volumes."""

    path: Place = Field(description="where it appears")


class VolumeCreate(Request):
    """POST /v1/volumes."""

    name: VolumeName = Field(description="unique among the project's volumes")
    size: int | None = Field(None, ge=64, le=4_194_304, description="MiB it can hold; taken from the node's disk as it is used. Null: 1024, or as `source`")
    source: str | None = Field(None, min_length=1, max_length=63, description="name or id of the volume of which it is a copy, as that is now")


class Volume(Answer):
    """Storage that sandboxes share and that outlives them."""

    id: str
    name: str
    project: str
    size: int = Field(description="MiB it can hold")
    sandboxes: list[str] = Field(description="ids of the living ones that have it")
    created_at: datetime
    created_by: str


class Volumes(Answer):
    """GET /v1/volumes, by name."""

    volumes: list[Volume]


# Its files, without a sandbox

Numbers = Annotated[str, Field(pattern=r"^\d{1,10}(:\d{1,10})?$", description="the owner, as numbers: user, or user:group. A volume knows no names")]


class VolumeMkdir(At):
    """POST /v1/volumes/{volume}/files/mkdir."""

    mode: int | None = Field(None, ge=0, le=0o7777, description="null: 0777, as the volume's root has it")
    parents: bool = True
    user: Numbers | None = None


class VolumeSymlink(At):
    """POST /v1/volumes/{volume}/files/symlink."""

    target: Path = Field(description="what it leads to, as programs will read it")
