"""Files of a sandbox."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import Field, model_validator

from corral.schema.model import Answer, Request

Path = Annotated[str, Field(min_length=1, max_length=4095, pattern=r"^[^\x00]+$")]


class Kind(StrEnum):
    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    FIFO = "fifo"
    SOCKET = "socket"
    DEVICE = "device"


class Entry(Answer):
    """One file. A name that is not UTF-8 has its odd bytes as `\\udcXX` replaced by U+FFFD in `path`, and whole in `path_b64`."""

    name: str
    path: str
    path_b64: str | None = Field(None, description="base64 of the real path when it is not UTF-8; usable as `path_b64` of requests")
    type: Kind
    size: int
    mode: int = Field(description="permission bits, 0o7777")
    uid: int
    gid: int
    user: str | None
    group: str | None
    modified_at: datetime
    target: str | None = Field(None, description="of a symbolic link")


class Entries(Answer):
    entries: list[Entry]
    more: bool = False

    @property
    def cursor(self) -> dict[str, str]:
        """Fields of the request for the page behind this one, in which there is something."""
        last = self.entries[-1]
        return {"after": last.path} if last.path_b64 is None else {"after_b64": last.path_b64}


class Paths(Answer):
    paths: list[str]
    more: bool = False


class Exists(Answer):
    """POST …/files/exists."""

    exists: bool


class At(Request):
    """A request about one path: absolute, or relative to the sandbox's workdir. `path_b64` instead for names that are not UTF-8."""

    path: Path | None = None
    path_b64: str | None = Field(None, max_length=5464)


class ListFiles(At):
    depth: int = Field(1, ge=1, le=64)
    limit: int = Field(10_000, ge=1, le=10_000)
    after: str | None = Field(None, description="path of the last entry of the page before")
    after_b64: str | None = Field(None, max_length=5464, description="that entry's `path_b64`, where it has one")

    @model_validator(mode="after")
    def _one_place(self) -> ListFiles:
        if self.after is not None and self.after_b64 is not None:
            raise ValueError("give either after or after_b64")
        return self

    @property
    def behind(self) -> At | None:
        """Of which the entries are that come next."""
        if self.after is None and self.after_b64 is None:
            return None
        return At.model_construct(path=self.after, path_b64=self.after_b64)


class Mkdir(At):
    mode: int = Field(0o755, ge=0, le=0o7777)
    parents: bool = True
    user: str | None = None


class Remove(At):
    recursive: bool = False
    missing_ok: bool = False


class Move(Request):
    source: Path
    target: Path
    overwrite: bool = False


class Copy(Request):
    source: Path
    target: Path
    recursive: bool = True
    overwrite: bool = False


class Chmod(At):
    mode: int = Field(ge=0, le=0o7777)
    recursive: bool = False


class Chown(At):
    user: str = Field(min_length=1, max_length=256, description="user, user:group, or numbers")
    recursive: bool = False


class Symlink(Request):
    target: Path
    path: Path


class Glob(Request):
    pattern: Path
    limit: int = Field(10_000, ge=1, le=100_000)


class WatchEvent(Answer):
    """`data` of the events of GET …/watch (server-sent events); the event's id is the offset to resume from."""

    type: Annotated[str, Field(pattern="^(create|write|remove|rename|chmod|overflow)$")]
    path: str
    to: str | None = None
    directory: bool = False
