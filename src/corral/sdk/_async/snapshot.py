"""Snapshots: a sandbox's disk at one moment, perhaps with its memory, from which others start."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import datetime
from typing import TYPE_CHECKING, Self

from corral.schema.snapshot import Snapshot as SnapshotInfo
from corral.schema.snapshot import SnapshotPage, SnapshotUpdate
from corral.sdk import faults

if TYPE_CHECKING:
    from corral.sdk._async.client import Client


class Snapshot:
    """One snapshot or checkpoint. `Sandbox.create` takes it, its id or its name as the image."""

    def __init__(self, client: Client, info: SnapshotInfo) -> None:
        self.info = info
        """What the server said last."""
        self.client = client

    @classmethod
    async def get(cls, id_or_name: str, *, client: Client | None = None) -> Self:
        """The snapshot of that id or name; `NotFound` when there is none."""
        client = client or await _default()
        return cls(client, faults.decode(SnapshotInfo, await client.transport.call("GET", "/v1/snapshots/" + faults.segment(id_or_name))))

    @classmethod
    async def list(cls, *, sandbox: str | None = None, shared: bool = False, client: Client | None = None) -> AsyncGenerator[Self, None]:
        """The project's snapshots, newest first; with `sandbox`, those of that one, by its id. `shared`: in their place, those that other projects share with it."""
        client = client or await _default()
        query: dict[str, str | list[str] | None] = {"sandbox": sandbox, "shared": "true" if shared else None}
        while True:
            page = faults.decode(SnapshotPage, await client.transport.call("GET", "/v1/snapshots", query=query))
            for info in page.snapshots:
                yield cls(client, info)
            if page.next is None:
                return
            query["cursor"] = page.next

    def __repr__(self) -> str:
        return f"<{'Checkpoint' if self.info.checkpoint else 'Snapshot'} {self.id}{f' {self.name!r}' if self.name else ''} of {self.info.sandbox}>"

    @property
    def id(self) -> str:
        return self.info.id

    @property
    def name(self) -> str | None:
        return self.info.name

    @property
    def size(self) -> int:
        """Bytes its disk refers to, those shared with sandboxes and other snapshots included."""
        return self.info.size

    @property
    def memory(self) -> int | None:
        """Bytes of the memory that is kept with it; None: it is a disk alone."""
        return self.info.memory

    @property
    def created_at(self) -> datetime:
        return self.info.created_at

    @property
    def timing(self) -> dict[str, float]:
        """Of one made just now, seconds: `total`, and `stopped`, for how long writers in the sandbox had to wait."""
        return self.info.timing or {}

    async def refresh(self) -> Self:
        """Ask the server how it is; `info.unshared` tells what its removal would free."""
        self.info = faults.decode(SnapshotInfo, await self.client.transport.call("GET", "/v1/snapshots/" + self.id))
        return self

    async def share(self, *projects: str) -> None:
        """Let these other projects, and no others, start sandboxes of it by its id; without any, nobody. What they have made of it goes on when they may no more.

        With memory, what was secret in it is theirs too. Raises `NotFound` for a project that there is not.
        """
        body = faults.encode(faults.build(SnapshotUpdate, shared_with=list(projects)))
        self.info = faults.decode(SnapshotInfo, await self.client.transport.call("PATCH", "/v1/snapshots/" + self.id, body=body, safe=True))

    async def delete(self, *, cascade: bool = False) -> None:
        """Delete it. Raises `Conflict` while something stands on it; `cascade` deletes snapshots that do, and lets sandboxes go on until they end."""
        if self.info.checkpoint:
            await self.client.transport.call("DELETE", f"/v1/sandboxes/{self.info.sandbox}/checkpoints/{self.id}")
        else:
            await self.client.transport.call("DELETE", "/v1/snapshots/" + self.id, query={"cascade": "true"} if cascade else None)


async def _default() -> Client:
    from corral.sdk._async.client import default_client

    return await default_client()
