"""Snapshots with memory that the server makes aside for sandboxes to begin with: of a sandbox of its own, in which what they would wait for runs already.

They belong to a project of the server's own, so nobody sees, counts or deletes them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from corral.control.accounts import OWN
from corral.control.record import Record
from corral.control.roles import Actor
from corral.control.sandboxes import Sandboxes
from corral.control.shelf import SnapshotRecord
from corral.control.snapshots import Snapshots
from corral.control.warm import SHAPE
from corral.schema.account import Role
from corral.schema.egress import EgressPolicy
from corral.schema.sandbox import SandboxCreate

ACTOR = Actor("node", OWN, Role.MEMBER)
_SECONDS = 900.0
"""How long the sandbox whose memory is kept may live."""
_WAIT = 600.0
"""How long it may wait for room."""

log = structlog.get_logger(__name__)


class Premade:
    """Those whose names begin with `prefix`, made one at a time: whoever asks for many has the machine to himself for none. What fails is not tried again by this server: its reason lasts."""

    def __init__(self, sandboxes: Sandboxes, snapshots: Snapshots, *, prefix: str) -> None:
        self._sandboxes = sandboxes
        self._snapshots = snapshots
        self._prefix = prefix
        self._tried: dict[str, asyncio.Task[None]] = {}

    async def close(self) -> None:
        """What is being made is given up."""
        tasks = list(self._tried.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def kept(self) -> list[SnapshotRecord]:
        """The newest first."""
        return [kept for kept in self._snapshots.page(OWN, sandbox=None, before=None, limit=1 << 20) if (kept.name or "").startswith(self._prefix)]

    async def withdraw(self, kept: SnapshotRecord) -> None:
        """Nobody begins with it any more; it is removed when nothing stands on it."""
        await self._snapshots.withdraw(kept)

    def begin(
        self,
        name: str,
        like: SandboxCreate,
        image: str,
        ready: Callable[[Record], Awaitable[object]],
        *,
        image_id: str | None = None,
        most: int | None = None,
    ) -> None:
        """Make one when the caller has gone on, unless it was tried or another is being made: of a sandbox of `image` and of the shape of `like`, once `ready` has got it so far. Beyond `most` the oldest go.

        `image_id`: one that was found already. Without a network: who gets it may have another policy than who made it.
        """
        if name not in self._tried and all(task.done() for task in self._tried.values()):
            self._tried[name] = asyncio.get_running_loop().create_task(self._make(name, like, image, ready, image_id, most), name=f"premade {name}")

    async def _make(
        self, name: str, like: SandboxCreate, image: str, ready: Callable[[Record], Awaitable[object]], image_id: str | None, most: int | None
    ) -> None:
        shaped = like.model_dump(include=SHAPE)
        wanted = SandboxCreate.model_validate({**shaped, "image": image, "timeout": _SECONDS, "wait": _WAIT, "freeze": False, "egress": EgressPolicy()})
        try:
            record = await self._sandboxes.create(ACTOR, wanted, image_id=image_id)
            try:
                await ready(record)
                snapshot, timing = await self._snapshots.create(ACTOR, record.id, name, memory=True)
            finally:
                await asyncio.shield(self._sandboxes.delete(ACTOR, record.id))
            for old in [] if most is None else self.kept()[most:]:
                await self.withdraw(old)
                # It may be made again, when somebody asks for it.
                self._tried.pop(old.name or "", None)
        except Exception as error:
            log.warning("no_premade_memory", name=name, image=image, error=str(error))
        else:
            log.info("premade_memory", name=name, image=image, snapshot=snapshot.id, memory=snapshot.memory, seconds=timing["total"])
