"""What templates start, running already: snapshots with memory of sandboxes in which it was started and is ready.

The first create of a shape begins as any does, and has such a memory made aside; those that come when it is there begin with it. One that can't be used is told of and started cold, and made anew by the next server.
"""

from __future__ import annotations

from corral.control.accounts import OWN
from corral.control.images import Images
from corral.control.ports import Node
from corral.control.premade import Premade
from corral.control.sandboxes import Sandboxes
from corral.control.snapshots import Snapshots
from corral.control.starts import Starts
from corral.control.templates import Templates
from corral.control.warm import digest, plain, shape
from corral.node.interface import ImageSpec
from corral.schema.image import SetStart
from corral.schema.sandbox import SandboxCreate

_PREFIX = "start-"


class WarmStarts:
    """At most `most` memories."""

    def __init__(self, *, sandboxes: Sandboxes, snapshots: Snapshots, images: Images, templates: Templates, starts: Starts, node: Node, most: int) -> None:
        self._made = Premade(sandboxes, snapshots, prefix=_PREFIX)
        self._images = images
        self._templates = templates
        self._starts = starts
        self._node = node
        self._most = most
        images.on_gone = self._image_gone

    async def open(self) -> None:
        """Drop those of images that are gone, and those that another runsc, another agent or another processor has made. After the images."""
        for kept in self._made.kept():
            if self._most == 0 or not self._images.uses(kept.parent) or not self._node.is_current(kept.id):
                await self._made.withdraw(kept)

    async def close(self) -> None:
        """What is being made is given up."""
        await self._made.close()

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
        if (there := next((kept for kept in self._made.kept() if kept.name == name), None)) is not None:
            return self._node.image(there.id)
        setting = SetStart.model_validate(start)
        self._made.begin(name, wanted, image.id, lambda box: self._starts.begin(box, setting), image_id=image.id, most=self._most)
        return None

    async def _image_gone(self, node_image: str) -> None:
        for kept in self._made.kept():
            if kept.parent == node_image:
                await self._made.withdraw(kept)
