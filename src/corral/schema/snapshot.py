"""Snapshots and checkpoints as the API shows them, and what can be asked of them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from corral.schema.model import Answer, Request
from corral.schema.sandbox import Name

SnapshotName = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([a-z0-9_-]*[a-z0-9])?$")]


class SnapshotCreate(Request):
    """POST /v1/sandboxes/{id}/snapshots."""

    name: SnapshotName | None = Field(None, description="unique among the project's snapshots; usable wherever an image is named")
    memory: bool = Field(False, description="keep its processes and their memory too: in a sandbox made from it they go on from there")


class Snapshot(Answer):
    """A sandbox's disk at one moment, perhaps with its memory. Its id, or its name, is an image."""

    id: str
    name: str | None
    project: str
    sandbox: str = Field(description="whose disk it was")
    image: str = Field(description="what that sandbox was made from, as it was asked for")
    parent: str = Field(description="what its files lie on: an image's or a snapshot's id")
    checkpoint: bool = Field(description="it belongs to the history of its sandbox, and ends with it")
    automatic: bool = Field(False, description="nobody asked for it by name")
    disk: int = Field(description="MiB that the sandbox could write")
    size: int = Field(description="bytes its disk refers to; what sandboxes and other snapshots share with it is counted here too")
    shared_with: list[str] = Field(default_factory=list[str], description="other projects that may start sandboxes of it, by its id")
    memory: int | None = Field(None, description="bytes of the memory that is kept with it, which `max_disk` counts too; null: it is a disk alone")
    unshared: int | None = Field(None, description="bytes that only it has, and that its removal would free; told of a single snapshot")
    created_at: datetime
    created_by: str
    timing: dict[str, float] | None = Field(None, description="of one made just now, seconds: total, and stopped: for how long writers had to wait")


class SnapshotUpdate(Request):
    """PATCH /v1/snapshots/{snapshot}."""

    shared_with: list[Name] = Field(
        max_length=100, description="the other projects that may start sandboxes of it from now on: all of them, none if it is empty"
    )


class SnapshotPage(Answer):
    """GET /v1/snapshots, newest first."""

    snapshots: list[Snapshot]
    next: str | None = Field(None, description="`cursor` of the next page")


class CheckpointCreate(Request):
    """POST /v1/sandboxes/{id}/checkpoints."""

    name: Name = Field(description="unique among the sandbox's checkpoints")


class Checkpoints(Answer):
    """GET /v1/sandboxes/{id}/checkpoints, oldest first."""

    checkpoints: list[Snapshot]


class Rewind(Request):
    """POST /v1/sandboxes/{id}/rewind."""

    checkpoint: str = Field(min_length=1, max_length=63, description="its name or id")


class Change(Answer):
    """A difference of one path between two moments. Before and after: null where it is not there."""

    path: str = Field(description="absolute")
    path_b64: str | None = Field(None, description="the same as base64, when it is not UTF-8")
    change: Literal["added", "changed", "removed"]
    type: Literal["file", "directory", "symlink", "fifo", "socket", "device"] = Field(description="what it is, or was if it is removed")
    size_before: int | None = None
    size_after: int | None = None
    mode_before: int | None = None
    mode_after: int | None = None
    text: str | None = Field(None, description="a unified diff of its lines, if it was asked for and it is text of at most 256 KiB")


class Diff(Answer):
    """GET /v1/sandboxes/{id}/diff."""

    changes: list[Change] = Field(description="in the order of their paths")
    incomplete: bool = Field(False, description="there are more than were asked for, or paths too long to follow")


class MergeRequest(Request):
    """POST /v1/sandboxes/{sandbox}/merge."""

    snapshot: str = Field(min_length=1, max_length=63, description="name or id of the snapshot whose changes are taken over")
    base: str | None = Field(
        None,
        min_length=1,
        max_length=63,
        description="name or id of what both come from; null: the snapshot's nearest ancestor that this sandbox comes from or that was taken of it",
    )
    on_conflict: Literal["refuse", "keep", "take"] = Field("refuse", description="what both changed: nothing is done at all, or ours stays, or theirs is taken")
    dry_run: bool = Field(False, description="only tell what would be done")


class MergeConflict(Answer):
    """A path that both have changed, and not to the same."""

    path: str
    theirs: Literal["added", "changed", "removed"]
    ours: Literal["added", "changed", "removed"] | None = Field(description="null: what is in its way is above or below it")
    why: str


class Merge(Answer):
    """What a merge has done, or would do."""

    base: str = Field(description="id of what the changes were counted from")
    changes: list[Change] = Field(description="what was taken over")
    conflicts: list[MergeConflict]
    checkpoint: str | None = Field(None, description="name of the checkpoint of the disk as it was before; null: nothing was done")
