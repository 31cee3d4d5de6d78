"""A trial of the whole engine with one runsc: a sentry is started as the server starts them, spoken to and ended, in a home that exists for this only."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path

from corral.agent_binary import agent_binary
from corral.node import rootfs
from corral.node.cgroup import Groups, find_hierarchies
from corral.node.disks import PoolDisks
from corral.node.engine import EngineSettings, RunscEngine
from corral.node.holder_client import HolderClient
from corral.node.interface import Ended
from corral.places import Places


def self_test(program: Path) -> None:
    """Raises `SetupError` or `PlatformError` that tells what went wrong. Needs root. Takes about a second and leaves nothing."""
    with _scratch() as places:
        asyncio.run(_one_sentry(places, program))


async def _one_sentry(places: Places, program: Path) -> None:
    # With an empty pool the engine makes one member when it opens, tests it, and ends it.
    engine = RunscEngine(places, settings=EngineSettings(agent=agent_binary(), runsc=program, pool=0), disks=PoolDisks(places), rootfs=rootfs)
    try:
        await engine.open(_never)
    except BaseException:
        await _sweep(places)
        raise
    await engine.shutdown()


async def _sweep(places: Places) -> None:
    """An engine that did not open may have left its holder."""
    holder = HolderClient(on_lost=lambda: None)
    with contextlib.suppress(OSError):
        await holder.connect(places.holder_socket)
        await holder.shutdown()
    Groups(find_hierarchies(), places.tag).remove()


async def _never(_: Ended) -> None:
    """There is no sandbox whose end could be told."""


@contextlib.contextmanager
def _scratch() -> Generator[Places]:
    with tempfile.TemporaryDirectory(prefix="corral-self-test-", dir="/var/tmp") as name:
        places = Places(Path(name))
        try:
            yield places
        finally:
            shutil.rmtree(places.run, ignore_errors=True)
