"""What templates start, running already: snapshots with memory of sandboxes in which it was started and is ready.

The first create of a shape begins as any does, and has such a memory made aside; those that come when it is there begin with it. They belong to the project of the
server's own, so nobody sees, counts or deletes them. One that can't be used is told of and started cold, and made anew by the next server.
"""

from __future__ import annotations

import asyncio

import structlog

from corral.control.accounts import OWN
from corral.control.images import ImageRecord, Images
from corral.control.ports import Node
from corral.control.roles import Actor
from corral.control.sandboxes import Sandboxes
from corral.control.shelf import SnapshotRecord
from corral.control.snapshots import Snapshots
from corral.control.starts import Starts
from corral.control.templates import Templates
from corral.control.warm import SHAPE, digest, plain, shape
from corral.node.interface import ImageSpec
from corral.schema.account import Role
from corral.schema.egress import EgressPolicy
from corral.schema.image import SetStart
from corral.schema.sandbox import SandboxCreate

ACTOR = Actor("node", OWN, Role.MEMBER)
_PREFIX = "start-"
_SECONDS = 900.0
"""How long the sandbox whose memory is kept may live."""
_WAIT = 600.0
"""How long it may wait for room."""

log = structlog.get_logger(__name__)


class WarmStarts:
    """At most `most` memories."""

    def __init__(self, *, sandboxes: Sandboxes, snapshots: Snapshots, images: Images, templates: Templates, starts: Starts, node: Node, most: int) -> None:
        self._sandboxes = sandboxes
        self._snapshots = snapshots
        self._images = images
        self._templates = templates
        self._starts = starts
        self._node = node
        self._most = most
        self._tried: dict[str, asyncio.Task[None]] = {}
        images.on_gone = self._image_gone

    async def open(self) -> None:
        """Drop those of images that are gone, and those that another runsc, another agent or another processor has made. After the images."""
        for kept in self._kept():
            if self._most == 0 or not self._images.uses(kept.parent) or not self._node.is_current(kept.id):
                await self._snapshots.withdraw(kept)

    async def close(self) -> None:
        """What is being made is given up."""
        tasks = list(self._tried.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def instead(self, project: str, image: ImageSpec, wanted: SandboxCreate) -> ImageSpec | None:
        """What a sandbox that is wanted of this image begins with, if there is one. If there is none and could be, it is made when the caller has gone on."""
        if project == OWN or self._most == 0 or image.warm is not None:
            return None
        record = self._templates.image(project, wanted.image)
        start = None if record is None else record.settings.start
        # A volume is there only when the memory has come back.
        if record is None or start is None or not start.get("warm") or wanted.volumes or not plain(image, wanted):
            return None
        name = _PREFIX + digest(image.id.encode() + record.config.encode()) + "-" + shape(wanted)
        if (there := next((kept for kept in self._kept() if kept.name == name), None)) is not None:
            return self._node.image(there.id)
        if name not in self._tried:
            self._tried[name] = asyncio.get_running_loop().create_task(self._make(name, record, image, wanted), name="warm-start")
        return None

    def _kept(self) -> list[SnapshotRecord]:
        """The newest first."""
        return [kept for kept in self._snapshots.page(OWN, sandbox=None, before=None, limit=1 << 20) if (kept.name or "").startswith(_PREFIX)]

    async def _make(self, name: str, of: ImageRecord, image: ImageSpec, like: SandboxCreate) -> None:
        """Tried once in the life of a server: what fails, fails for a reason that lasts. Without a network: who gets it may have another policy than who made it."""
        shaped = like.model_dump(include=SHAPE)
        wanted = SandboxCreate.model_validate({**shaped, "image": image.id, "timeout": _SECONDS, "wait": _WAIT, "freeze": False, "egress": EgressPolicy()})
        try:
            record = await self._sandboxes.create(ACTOR, wanted, image_id=image.id)
            try:
                await self._starts.begin(record, SetStart.model_validate(of.settings.start))
                snapshot, timing = await self._snapshots.create(ACTOR, record.id, name, memory=True)
            finally:
                await asyncio.shield(self._sandboxes.delete(ACTOR, record.id))
            for old in self._kept()[self._most :]:
                await self._snapshots.withdraw(old)
        except Exception as error:
            log.warning("no_warm_start", image=of.id, project=of.project, error=str(error))
        else:
            log.info("warm_start_made", image=of.id, snapshot=snapshot.id, memory=snapshot.memory, seconds=timing["total"])

    async def _image_gone(self, node_image: str) -> None:
        for kept in self._kept():
            if kept.parent == node_image:
                await self._snapshots.withdraw(kept)
