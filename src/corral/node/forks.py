"""Forking: new sandboxes from a running one, with its disk and its memory, while it goes on.

source     disk written out → agent quiet → guest stands still → memory saved → disk copied → guest and agent go on
children   at once: disk from the copy, processes' records, a prepared member, memory restored → hello → identity and hooks

The memory is kept in memory for as long as that takes, or on the disk when it is large. A child that fails leaves nothing and harms no other.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from corral.errors import CorralError, InternalError
from corral.node.box import RunscBox
from corral.node.cgroup import MIB
from corral.node.disks import PoolDisks
from corral.node.engine import RunscEngine
from corral.node.interface import Child, Timing
from corral.node.memory import Needs, Returning
from corral.node.pauses import Pauses
from corral.node.place import InMemory, OnDisk, Place
from corral.node.pool import available
from corral.node.processes import Branch
from corral.node.running import Running
from corral.node.volumes import Volumes
from corral.places import Places

SHARE = 8
"""A memory that may take more than this fraction of what is available is written to the disk."""
PREFIX = ".fork-"

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Moment:
    """A sandbox at one moment: everything that its forks need."""

    place: Place
    disk: Path
    needs: Needs
    branch: Branch
    stopped: float
    """Seconds for which it stood still."""


class Forks:
    """Makes them."""

    def __init__(self, places: Places, engine: RunscEngine, disks: PoolDisks, volumes: Volumes, pauses: Pauses) -> None:
        self._places = places
        self._engine = engine
        self._disks = disks
        self._volumes = volumes
        self._pauses = pauses

    def sweep(self) -> None:
        """Remove what a server left that was killed over a fork. Before the first one."""
        for half_made in (*self._places.paused.glob(f"{PREFIX}*"), *self._places.memory.glob(f"{PREFIX}*")):
            if half_made.is_dir():
                shutil.rmtree(half_made)
            else:
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
        """Have a sandbox stand still, copy all of it, and let it go on. The copy is gone at the end."""
        id = source.spec.id
        needs = self._pauses.needs(id)
        name = f"{PREFIX}{id}-{secrets.token_hex(4)}"
        place, disk = self._place(source, name), self._places.paused / f"{name}.img"
        try:
            await asyncio.gather(asyncio.to_thread(self._engine.keep_programs, needs, id), self._disks.write_out(id))
            yield await self._copied(source, place, disk, needs)
        finally:
            match place:
                case OnDisk():
                    await asyncio.shield(asyncio.to_thread(shutil.rmtree, place.directory))
                case InMemory():
                    place.close()
            disk.unlink(missing_ok=True)
            # The memory's pages counted for the source's group until now.
            self._engine.tighten(id)

    async def _copied(self, source: Running, place: Place, disk: Path, needs: Needs) -> Moment:
        id = source.spec.id
        with source.link.working():
            try:
                await self._pauses.prepare(source)
                branch = source.guest.processes.branch()
                async with self._engine.still(id) as still:
                    began = time.perf_counter()
                    await still.save(place)
                    await self._disks.copy(id, disk)
                stopped = time.perf_counter() - began
                await source.guest.quiesce(on=False)
            except BaseException as error:
                await self._pauses.explained(source, error)
        return Moment(place, disk, needs, branch, stopped)

    def _place(self, source: Running, name: str) -> InMemory | OnDisk:
        if source.box.group.usage().memory < available() // SHARE:
            return InMemory()
        log.info("a fork's memory goes by the disk", sandbox=source.spec.id, mib=source.box.group.usage().memory // MIB)
        directory = self._places.memory / name
        directory.mkdir(mode=0o700)
        return OnDisk(directory)
