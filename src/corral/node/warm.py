"""Snapshots with memory, and sandboxes that start from them: what runs in them runs already.

make      a moment of the sandbox (memory beside the snapshot's disk) → records of its processes → memory safe → snapshot safe
start     records of the processes → a prepared member, its disk empty above the snapshot's → memory restored → hello → identity and hooks → volumes

The disk is a snapshot like any other. Where its memory can't be used, a sandbox of it starts cold.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from corral.errors import Unsupported
from corral.node.box import RunscBox
from corral.node.disks import Copied
from corral.node.engine import RunscEngine
from corral.node.interface import BoxSpec, ImageSpec, Timing, Warm
from corral.node.memory import Memories, Returning, Saved, records
from corral.node.moment import Moments
from corral.node.processes import Branch
from corral.node.running import Running
from corral.node.snapshots import Snapshots, StoredSnapshot
from corral.places import Places


class WarmSnapshots:
    """Makes and uses them."""

    def __init__(self, places: Places, engine: RunscEngine, snapshots: Snapshots, memories: Memories, moments: Moments) -> None:
        self._places = places
        self._engine = engine
        self._snapshots = snapshots
        self._memories = memories
        self._moments = moments

    async def make(self, source: Running, id: str, image: ImageSpec, *, user: str | None, workdir: str | None) -> StoredSnapshot:
        """Keep a running sandbox of `image` as a snapshot with memory; it goes on. When this fails nothing is left of it.

        Raises `Unsupported` when something in it can't be saved, or belongs to more than it.
        """
        spec = source.spec
        if spec.volumes:
            raise Unsupported(
                f"sandbox {spec.id} has volumes, and its memory may have files of them open",
                hint="detach them first, or take the snapshot without memory",
                details={"volumes": [use.path for use in spec.volumes]},
            )
        place = await asyncio.to_thread(self._memories.begin, id)

        async def take(disk: Path) -> tuple[Copied, Warm]:
            try:
                moment = await self._moments.take(source, place, disk)
                saved = Saved(id, moment.needs, moment.at, place.size())
                await asyncio.to_thread(moment.branch.write, records(place))
                await asyncio.to_thread(self._memories.write_out, saved)
                await asyncio.to_thread(self._memories.settle, saved)
            finally:
                self._moments.release(source)
            return Copied(disk.stat().st_blocks * 512, moment.stopped), Warm(spec.memory, spec.pids, spec.sudo, saved.size)

        try:
            return await self._snapshots.make(id, spec.id, image, disk=spec.disk, user=user, workdir=workdir, take=take)
        except BaseException:
            await asyncio.shield(asyncio.to_thread(self._give_up, id))
            raise

    async def start(self, spec: BoxSpec, secrets: Mapping[str, str], enter: Callable[[RunscBox, float], Awaitable[None]]) -> Timing:
        """A new sandbox of a snapshot with memory. `enter` takes its box, says hello to it and tells it who it is; it is told for how many seconds that had slept.

        Raises `Unsupported` when the memory can't be used here. What is left of a failure is for the caller to remove.
        """
        began, image = time.perf_counter(), spec.image.id
        if (saved := self._memories.get(image)) is None:
            raise Unsupported(f"the memory of the snapshot {image} is gone", hint="take it again")
        place = self._memories.place(image)
        returning = Returning(place, saved.needs, _nothing)
        (box, timing), _ = await asyncio.gather(
            self._engine.restore(spec, secrets, returning),
            asyncio.to_thread(lambda: Branch.written(records(place)).write(self._places.spool / spec.id)),
        )
        restored = time.perf_counter()
        await enter(box, max(0.0, time.time() - saved.at))
        ended = time.perf_counter()
        return {**timing, "ready": ended - restored, "total": ended - began}

    def _give_up(self, id: str) -> None:
        self._memories.give_up(id)
        self._memories.drop(id)


async def _nothing(_volumes: Path) -> None:
    """It was saved without volumes; those of the new one come when it runs."""
