"""Templates of code sandboxes: snapshots with memory in which the kernel of the default context runs already.

The first create of a shape begins as any does, and has a template of that shape made aside; those that come when it is there begin with it. They belong to a project
of the server's own, so nobody sees, counts or deletes them.
"""

from __future__ import annotations

import asyncio

import structlog

from corral.code import start
from corral.code.contexts import Contexts
from corral.control.accounts import OWN
from corral.control.ports import Node
from corral.control.roles import Actor
from corral.control.sandboxes import Sandboxes
from corral.control.shelf import SnapshotRecord
from corral.control.snapshots import Snapshots
from corral.control.warm import SHAPE, digest, plain, shape
from corral.errors import ImageNotFound
from corral.node.interface import ImageSpec
from corral.schema.account import Role
from corral.schema.egress import EgressPolicy
from corral.schema.sandbox import SandboxCreate

ACTOR = Actor("node", OWN, Role.MEMBER)
_PREFIX = "code-"
_SECONDS = 900.0
"""How long the sandbox of which a template is made may live."""
_WAIT = 600.0
"""How long it may wait for room."""

log = structlog.get_logger(__name__)


class ReadyCode:
    """At most `most` templates."""

    def __init__(self, *, sandboxes: Sandboxes, snapshots: Snapshots, contexts: Contexts, node: Node, most: int) -> None:
        self._sandboxes = sandboxes
        self._snapshots = snapshots
        self._contexts = contexts
        self._node = node
        self._most = most
        self._tried: dict[str, asyncio.Task[None]] = {}

    async def open(self) -> None:
        """Drop what is of another image, another program of ours, another runsc or another processor, and what a server that was killed had begun. After the snapshots."""
        for record in [record for record in self._sandboxes.records() if record.project == OWN]:
            await self._sandboxes.delete(ACTOR, record.id)
        current = self._current()
        for kept in self._kept():
            # Of another runsc or processor it would do as long as it can be brought back, and be worse than one that is made anew.
            if self._most == 0 or current is None or not (kept.name or "").startswith(current) or not self._node.is_current(kept.id):
                await self._snapshots.withdraw(kept)

    async def close(self) -> None:
        """What is being made is given up."""
        tasks = list(self._tried.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def instead(self, project: str, image: ImageSpec, wanted: SandboxCreate) -> ImageSpec | None:
        """The template for a sandbox that is wanted of this image, if there is one. If there is none and could be, it is made when the caller has gone on."""
        if project == OWN or image.name != start.IMAGE or image.warm is not None or not plain(image, wanted):
            return None
        name = _base(image) + shape(wanted)
        there = {kept.name: kept.id for kept in self._kept()}
        if name in there:
            return self._node.image(there[name])
        if name not in self._tried and len({*there, *self._tried}) < self._most:
            self._tried[name] = asyncio.get_running_loop().create_task(self._make(name, wanted), name="code-template")
        return None

    def _kept(self) -> list[SnapshotRecord]:
        return [kept for kept in self._snapshots.page(OWN, sandbox=None, before=None, limit=1 << 20) if (kept.name or "").startswith(_PREFIX)]

    async def _make(self, name: str, like: SandboxCreate) -> None:
        """Tried once in the life of a server: what fails, fails for a reason that lasts."""
        wanted = SandboxCreate.model_validate(
            {**like.model_dump(include=SHAPE), "image": start.IMAGE, "timeout": _SECONDS, "wait": _WAIT, "freeze": False, "egress": EgressPolicy()}
        )
        try:
            record = await self._sandboxes.create(ACTOR, wanted)
            try:
                await asyncio.gather(*(self._contexts.default(record.id, language) for language in start.WARM))
                snapshot, timing = await self._snapshots.create(ACTOR, record.id, name, memory=True)
            finally:
                await asyncio.shield(self._sandboxes.delete(ACTOR, record.id))
        except Exception as error:
            log.warning("no_code_template", name=name, error=str(error))
        else:
            log.info("code_template_made", name=name, snapshot=snapshot.id, memory=snapshot.memory, seconds=timing["total"])

    def _current(self) -> str | None:
        try:
            return _base(self._node.image(start.IMAGE))
        except ImageNotFound:
            return None


def _base(image: ImageSpec) -> str:
    """What the names of all templates of an image begin with, while the program that starts contexts is the same."""
    return f"{_PREFIX}{digest(image.id.encode() + start.program())}-"
