"""Templates of code sandboxes: snapshots with memory in which the kernel of the default context runs already.

The first create of a shape begins as any does, and has a template of that shape made aside; those that come when it is there begin with it.
"""

from __future__ import annotations

import asyncio

from corral.code import start
from corral.code.contexts import Contexts
from corral.control.accounts import OWN
from corral.control.ports import Node
from corral.control.premade import ACTOR, Premade
from corral.control.sandboxes import Sandboxes
from corral.control.snapshots import Snapshots
from corral.control.warm import digest, plain, shape
from corral.errors import ImageNotFound
from corral.node.interface import ImageSpec
from corral.schema.sandbox import SandboxCreate

_PREFIX = "code-"


class ReadyCode:
    """At most `most` templates."""

    def __init__(self, *, sandboxes: Sandboxes, snapshots: Snapshots, contexts: Contexts, node: Node, most: int) -> None:
        self._made = Premade(sandboxes, snapshots, prefix=_PREFIX)
        self._sandboxes = sandboxes
        self._contexts = contexts
        self._node = node
        self._most = most

    async def open(self) -> None:
        """Drop what is of another image, another program of ours, another runsc or another processor, and what a server that was killed had begun. After the snapshots."""
        for record in [record for record in self._sandboxes.records() if record.project == OWN]:
            await self._sandboxes.delete(ACTOR, record.id)
        current = self._current()
        for kept in self._made.kept():
            # Of another runsc or processor it would do as long as it can be brought back, and be worse than one that is made anew.
            if self._most == 0 or current is None or not (kept.name or "").startswith(current) or not self._node.is_current(kept.id):
                await self._made.withdraw(kept)

    async def close(self) -> None:
        """What is being made is given up."""
        await self._made.close()

    def instead(self, project: str, image: ImageSpec, wanted: SandboxCreate) -> ImageSpec | None:
        """The template for a sandbox that is wanted of this image, if there is one. If there is none and could be, it is made when the caller has gone on."""
        if project == OWN or self._most == 0 or image.name != start.IMAGE or image.warm is not None or not plain(image, wanted):
            return None
        name = _base(image) + shape(wanted)
        there = {kept.name: kept.id for kept in self._made.kept()}
        if name in there:
            return self._node.image(there[name])
        self._made.begin(
            name, wanted, start.IMAGE, lambda box: asyncio.gather(*(self._contexts.default(box.id, language) for language in start.WARM)), most=self._most
        )
        return None

    def _current(self) -> str | None:
        try:
            return _base(self._node.image(start.IMAGE))
        except ImageNotFound:
            return None


def _base(image: ImageSpec) -> str:
    """What the names of all templates of an image begin with, while the program that starts contexts is the same."""
    return f"{_PREFIX}{digest(image.id.encode() + start.program())}-"
