"""The holder by itself: what it tells of processes."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from corral.node import holder_client
from corral.node.holder_client import HolderClient, Spawn

pytestmark = [pytest.mark.no_engine, pytest.mark.anyio]
ENV = {"PATH": "/usr/bin:/bin"}
NEXT = Path("/proc/sys/kernel/ns_last_pid")


@asynccontextmanager
async def holder(directory: Path) -> AsyncGenerator[HolderClient]:
    await holder_client.start(directory / "holder.sock", directory / "holder.log")
    client = HolderClient(on_lost=lambda: None)
    await client.connect(directory / "holder.sock")
    try:
        yield client
    finally:
        await client.shutdown()


async def orphan(client: HolderClient, command: str) -> int:
    """The number of a process whose parent has ended, so that it is the holder's child."""
    read, write = os.pipe2(os.O_CLOEXEC)
    try:
        parent = await client.spawn(Spawn(["/bin/sh", "-c", f"{command} & echo $!"], env=ENV, fds={1: write}))
        await client.exit_of(parent)
        await client.forget([parent])
        return int(os.read(read, 32))
    finally:
        os.close(read)
        os.close(write)


async def test_the_end_of_an_orphan_is_told_also_when_it_is_asked_for_late(tmp_path: Path) -> None:
    async with holder(tmp_path) as client:
        pid = await orphan(client, "/bin/sh -c 'exit 3'")
        while pid in (await client.list()).children:
            pass
        await client.watch([pid])
        status = await client.exit_of(pid)
        assert status is not None
        assert os.waitstatus_to_exitcode(status) == 3


async def test_a_process_is_not_taken_for_an_earlier_one_of_its_number(tmp_path: Path) -> None:
    if not os.access(NEXT, os.W_OK):
        pytest.skip("the next process number can't be chosen here")
    async with holder(tmp_path) as client:
        gone = await orphan(client, "/bin/true")
        while gone in (await client.list()).children:
            pass
        living = 0
        while living != gone:
            # A shell of that orphan takes the number before; somebody else may be quicker.
            NEXT.write_text(str(gone - 2))
            living = await orphan(client, "exec sleep 600 >&-")
            if living != gone:
                os.kill(living, signal.SIGKILL)
        await client.watch([living], fresh=True)
        await client.list()  # what it has to tell of an end comes before this answer
        assert not client.exit_of(living).done()
