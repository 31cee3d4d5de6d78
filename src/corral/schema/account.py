"""Projects and keys."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from pydantic import Field

from corral.schema.model import Answer, Request
from corral.schema.sandbox import Name


class Role(StrEnum):
    ADMIN = "admin"
    MEMBER = "member"
    READER = "reader"


class ProjectCreate(Request):
    name: Name
    max_sandboxes: int | None = Field(None, ge=0)
    max_cpu: float | None = Field(None, ge=0, description="cores, over all running sandboxes")
    max_memory: int | None = Field(None, ge=0, description="MiB")
    max_disk: int | None = Field(None, ge=0, description="MiB")


class Project(Answer):
    name: str
    created_at: datetime
    max_sandboxes: int | None
    max_cpu: float | None
    max_memory: int | None
    max_disk: int | None


class Projects(Answer):
    projects: list[Project]


class KeyCreate(Request):
    name: str = Field(min_length=1, max_length=128)
    project: str = "default"
    role: Role = Role.MEMBER
    public_key: str | None = Field(
        None,
        max_length=16_384,
        pattern=r"^[a-z0-9@.-]+ [A-Za-z0-9+/]+=*( [^\n]*)?\n?$",
        description="of SSH, as in id_ed25519.pub: whoever has its private half logs in as this key",
    )


class Key(Answer):
    """A key without its value."""

    id: str
    name: str
    project: str
    role: Role
    created_at: datetime
    revoked_at: datetime | None = None
    public_key: str | None = Field(None, description="of SSH")


class NewKey(Key):
    """The only answer that holds a key's value: `ck_` and 40 hexadecimal digits."""

    value: str


class Keys(Answer):
    keys: list[Key]
