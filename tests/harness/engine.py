"""The engine alone, without a server: on a home of its own, with real disks, the image `tiny` and the real agent."""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from corral import images
from corral.agent_binary import agent_binary
from corral.ids import new_id
from corral.images import Catalog
from corral.node import programs, rootfs
from corral.node.box import RunscBox
from corral.node.disks import PoolDisks
from corral.node.engine import EngineSettings, RunscEngine
from corral.node.guest import Guest
from corral.node.interface import BoxSpec, Ended, Timing
from corral.node.link import Link
from corral.places import Places
from corral.schema.process import Process, ProcessStart
from harness import homes, leaks

PATIENCE = 60.0
"""Seconds after which something that ought to happen is held not to happen."""


class EngineHome:
    """One installation. `ended` are the sandboxes that ended by themselves, in order."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.image = Catalog(places).spec("tiny")
        self.ended: asyncio.Queue[Ended] = asyncio.Queue()
        chosen = os.environ.get("CORRAL_TEST_RUNSC")
        self.settings = EngineSettings(agent=agent_binary(), runsc=Path(chosen) if chosen else None, pool=2)

    async def open(self) -> list[RunscBox]:
        """As a new server; returns what it has adopted."""
        self.disks = PoolDisks(self.places, default_mib=256, stock=2, pool_bytes=4 << 30)
        self.engine = RunscEngine(self.places, settings=self.settings, disks=self.disks, rootfs=rootfs)
        await self.disks.open()
        return [box for box in await self.engine.open(self.ended.put) if isinstance(box, RunscBox)]

    async def close(self) -> None:
        await self.engine.close()
        await self.disks.close()

    async def shutdown(self) -> None:
        await self.engine.shutdown()
        await self.disks.shutdown()
        self.places.run.rmdir()

    async def claim(self, spec: BoxSpec | None = None) -> Inside:
        box, timing = await self.engine.claim(spec or self.spec())
        assert isinstance(box, RunscBox)
        inside = Inside(self, box, timing)
        await inside.enter()
        return inside

    async def remove(self, *boxes: Inside) -> None:
        """End sandboxes and delete all of them."""
        for box in boxes:
            box.guest.processes.lose()
            box.leave()
        await asyncio.gather(*(self.engine.kill(box.id, keep_disk=False) for box in boxes))
        for box in boxes:
            shutil.rmtree(self.places.spool / box.id)

    def spec(self, *, memory: int = 256, pids: int = 128, cpu: float = 1.0) -> BoxSpec:
        return BoxSpec(id=new_id("sb"), image=self.image, cpu=cpu, memory=memory, disk=256, pids=pids, env={}, user=None, workdir=None, hostname="box")

    async def next_end(self) -> Ended:
        async with asyncio.timeout(PATIENCE):
            return await self.ended.get()


class Inside:
    """A sandbox as its guest is talked to."""

    def __init__(self, home: EngineHome, box: RunscBox, timing: Timing | None = None) -> None:
        self.box = box
        self.timing = timing or {}
        self.id = box.id
        self.guest = Guest(Link(box.control), home.places.spool / box.id, box.id)

    async def enter(self) -> None:
        """Take the link; claim what has not been claimed."""
        await self.guest.hello()
        if not self.guest.claimed:
            spec = self.box.spec
            await self.guest.claim(hostname=spec.hostname, memory=spec.memory, cpus=1, pids=spec.pids, tmp=64, sudo=False)

    async def run(self, command: str) -> tuple[int | None, str]:
        """Exit code and standard output of a shell command."""
        process = await self.start(command)
        async with asyncio.timeout(PATIENCE):
            ended = await self.guest.processes.wait(process.id)
            output = b"".join([chunk async for chunk in self._stdout(process.id)])
        return ended.exit_code, output.decode()

    async def start(self, command: str) -> Process:
        return await self.guest.processes.start(ProcessStart(argv=["/bin/sh", "-c", command]))

    async def _stdout(self, id: str) -> AsyncIterator[bytes]:
        async for item in self.guest.processes.output(id, follow=False):
            if not isinstance(item, Process) and item.stream == "stdout":
                yield base64.b64decode(item.data)

    def leave(self) -> None:
        self.guest.close()


@contextmanager
def home_directory(shared: Places) -> Iterator[Places]:
    """A directory for a home, with the image, deleted at the end."""
    path = homes.make("engine")
    places = Places(path)
    images.share(places, shared, ["tiny"])
    programs.share(places, shared)
    yield places
    shutil.rmtree(path)


@asynccontextmanager
async def engine_home(shared: Places) -> AsyncIterator[EngineHome]:
    """A fresh home with its engine open; everything of it must be gone at the end."""
    with home_directory(shared) as places:
        home = EngineHome(places)
        await home.open()
        try:
            yield home
        finally:
            await home.shutdown()
        await nothing_left(places)


async def nothing_left(places: Places) -> None:
    """The end of an installation leaves nothing. Another one that is making a sentry at that moment may hold copies of mounts for some milliseconds."""
    for _ in range(100):
        if not leaks.of_home(places):
            return
        await asyncio.sleep(0.05)
    assert leaks.of_home(places) == []
