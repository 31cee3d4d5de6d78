"""One service over the real agent: what becomes of it when its guest can't be asked for a moment, and when it ends in the moment in which it is stopped."""

from __future__ import annotations

import asyncio
import os
import select
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from corral.control.attempt import TAG, Attempt
from corral.control.ports import ProcessBook
from corral.schema.image import Ready
from corral.schema.process import ProcessStart
from corral.schema.service import ServiceSet, ServiceState
from harness.agent import Agent


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    agent = Agent(tmp_path)
    yield agent
    agent.end()


class Told:
    """What was told of a service, to wait for."""

    def __init__(self) -> None:
        self._told: asyncio.Queue[str] = asyncio.Queue()
        self.kinds: list[str] = []

    def __call__(self, kind: str, **data: object) -> None:
        self._told.put_nowait(kind)

    async def until(self, kind: str) -> None:
        while not self.kinds or self.kinds[-1] != kind:
            self.kinds.append(await self._told.get())
        self.kinds.append("")


async def no_probe(_: Ready) -> None:
    raise AssertionError("nobody asked for a probe")


async def test_it_outlives_a_moment_in_which_nothing_can_be_started(agent: Agent) -> None:
    told, asked, books = Told(), asyncio.Event(), list[ProcessBook]()

    def book() -> ProcessBook:
        asked.set()
        return books[-1]

    async with agent.guest() as guest:
        books.append(guest.processes)
        service = Attempt("web", ServiceSet.model_validate({"command": "exit 0"}), book=book, ready=no_probe, note=told)
        service.begin({})
        await told.until("exited")
    # Its turn comes while there is no link, as when the sandbox is being paused, or its node can't keep records.
    asked.clear()
    await asked.wait()
    await asyncio.sleep(0)
    assert service.describe().state is not ServiceState.FAILED
    async with agent.guest() as guest:
        books.append(guest.processes)
        await told.until("exited")
        assert "failed" not in told.kinds
        assert service.describe().restarts == 1
        await service.stop()


async def test_stopping_one_that_has_just_ended_is_no_error(agent: Agent) -> None:
    told = Told()
    async with agent.guest() as guest:
        service = Attempt("web", ServiceSet.model_validate({"command": "sleep 1000"}), book=lambda: guest.processes, ready=no_probe, note=told)
        process = await guest.processes.start(ProcessStart.model_validate({"argv": ["/bin/sleep", "1000"], "tag": TAG + "web"}))
        assert process.pid is not None
        ending = os.pidfd_open(process.pid)
        os.kill(process.pid, 9)
        select.select([ending], [], [])
        os.close(ending)
        # The agent has taken it too, and this loop had no turn in which it could have heard.
        while Path(f"/proc/{process.pid}").exists():
            time.sleep(0.01)
        await service.stop()
        await told.until("stopped")
        assert service.describe().state is ServiceState.STOPPED
