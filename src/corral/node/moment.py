"""A sandbox at one moment: its memory, its disk and the records of its processes, while it goes on.

disk written out → agent quiet → guest stands still → memory saved → disk copied → guest and agent go on
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

from corral.node.disks import PoolDisks
from corral.node.engine import RunscEngine
from corral.node.memory import Needs
from corral.node.pauses import Pauses
from corral.node.place import Place
from corral.node.processes import Branch
from corral.node.running import Running


@dataclass(frozen=True)
class Moment:
    """Everything that another sandbox needs to go on from it. `at`: seconds since 1970. `stopped`: seconds for which the source stood still."""

    place: Place
    disk: Path
    needs: Needs
    branch: Branch
    at: float
    stopped: float


class Moments:
    """Takes them."""

    def __init__(self, engine: RunscEngine, disks: PoolDisks, pauses: Pauses) -> None:
        self._engine = engine
        self._disks = disks
        self._pauses = pauses

    async def take(self, source: Running, place: Place, disk: Path) -> Moment:
        """Write a sandbox's memory to `place`, and make `disk` a copy of its disk. Call `release` when the memory was dealt with, also after a failure.

        Raises `Unsupported` when something in it can't be saved. It goes on in any case.
        """
        id = source.spec.id
        needs = self._pauses.needs(id)
        await asyncio.gather(asyncio.to_thread(self._engine.keep_programs, needs, id), self._disks.write_back(id))
        async with self._pauses.unspoken(source):
            try:
                await self._pauses.prepare(source)
                branch = source.guest.processes.branch()
                async with self._engine.still(id) as still:
                    at, began = time.time(), time.perf_counter()
                    await still.save(place)
                    await self._disks.copy_still(id, disk)
                stopped = time.perf_counter() - began
                await source.guest.quiesce(on=False)
            except BaseException as error:
                await self._pauses.explained(source, error)
        return Moment(place, disk, needs, branch, at, stopped)

    def release(self, source: Running) -> None:
        """What it wrote does not count for its group any more."""
        self._engine.tighten(source.spec.id)
