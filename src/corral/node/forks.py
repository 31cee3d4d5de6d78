"""Forking: new sandboxes from a running one, with its disk and its memory, while it goes on.

source     as `moment` says
children   at once: disk from the copy, processes' records, a prepared member, memory restored → hello → identity and hooks

The memory is in files without names for as long as that takes. A child that fails leaves nothing and harms no other.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import structlog

from corral.errors import CorralError, InternalError, SandboxEnded, Unavailable
from corral.node.box import RunscBox
from corral.node.disks import PoolDisks
from corral.node.engine import RunscEngine
from corral.node.interface import Child, Timing
from corral.node.memory import Returning
from corral.node.moment import Moment, Moments
from corral.node.place import Nameless
from corral.node.running import Running
from corral.node.urpc import SentryGone
from corral.node.volumes import Volumes
from corral.places import Places

PREFIX = ".fork-"

log = structlog.get_logger(__name__)


class Forks:
    """Makes them."""

    def __init__(self, places: Places, engine: RunscEngine, disks: PoolDisks, volumes: Volumes, moments: Moments) -> None:
        self._places = places
        self._engine = engine
        self._disks = disks
        self._volumes = volumes
        self._moments = moments

    def sweep(self) -> None:
        """Remove what a server left that was killed over a fork. Before the first one."""
        for half_made in self._places.paused.glob(f"{PREFIX}*"):
            half_made.unlink()

    async def fork(
        self, source: Running, children: Sequence[Child], enter: Callable[[Child, RunscBox], Awaitable[None]], leave: Callable[[str], Awaitable[None]]
    ) -> list[Timing | CorralError]:
        """A result for each child, in their order. `enter` takes a child's box, says hello to it and tells it who it is; `leave` removes everything of a child that failed.

        Raises what the source can't be saved for, and then there are no children; it goes on in any case.
        """
        async with self._moment(source) as moment:

            async def one(child: Child) -> Timing | CorralError:
                try:
                    return await self._make(moment, child, enter)
                except BaseException as error:
                    await asyncio.shield(leave(child.spec.id))
                    if isinstance(error, SentryGone | SandboxEnded):
                        return Unavailable(f"the fork {child.spec.id} was ended from outside while it was being made", hint="fork again")
                    if isinstance(error, CorralError):
                        return error
                    if isinstance(error, Exception):
                        log.exception("a fork failed", sandbox=child.spec.id)
                        return InternalError(f"the fork could not be made: {error}")
                    raise

            return list(await asyncio.gather(*(one(child) for child in children)))

    async def _make(self, moment: Moment, child: Child, enter: Callable[[Child, RunscBox], Awaitable[None]]) -> Timing:
        spec, began = child.spec, time.perf_counter()
        await asyncio.gather(self._disks.branch(spec.id, moment.disk), asyncio.to_thread(moment.branch.write, self._places.spool / spec.id))
        branched = time.perf_counter()
        returning = Returning(moment.place, moment.needs, lambda place: self._volumes.attach(spec.id, spec.volumes, place))
        box, timing = await self._engine.restore(spec, child.secrets, returning)
        restored = time.perf_counter()
        await enter(child, box)
        ended = time.perf_counter()
        return {**timing, "stopped": moment.stopped, "disk": branched - began, "ready": ended - restored, "total": ended - began}

    @asynccontextmanager
    async def _moment(self, source: Running) -> AsyncGenerator[Moment]:
        """A sandbox at this moment; gone at the end."""
        name = f"{PREFIX}{source.spec.id}-{secrets.token_hex(4)}"
        place, disk = Nameless(self._places.memory), self._places.paused / f"{name}.img"
        try:
            yield await self._moments.take(source, place, disk)
        finally:
            await asyncio.shield(asyncio.to_thread(place.close))
            disk.unlink(missing_ok=True)
            self._moments.release(source)
