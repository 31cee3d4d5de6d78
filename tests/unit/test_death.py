"""Why a sandbox ended, from what the host saw."""

from __future__ import annotations

import asyncio
import signal

import pytest

from corral.node.death import APART, Evidence, ends, explain
from corral.schema.sandbox import Reason


@pytest.mark.parametrize(
    ("evidence", "reason", "word"),
    [
        (Evidence(signal.SIGKILL, 1, 0, ""), Reason.OOM, "memory"),
        (Evidence(512, 0, 3, "panic: can't fork"), Reason.PIDS, "tasks"),
        (Evidence(512, 0, 0, "noise\npanic: nil map\ngoroutine 1"), Reason.CRASHED, "panic: nil map"),
        (Evidence(signal.SIGKILL, 0, 0, ""), Reason.KILLED, "SIGKILL"),
        (Evidence(signal.SIGSYS, 0, 0, ""), Reason.CRASHED, "SIGSYS"),
        (Evidence(signal.SIGRTMIN + 1, 0, 0, ""), Reason.CRASHED, "signal 35"),
        (Evidence(3 << 8, 0, 0, ""), Reason.AGENT_DIED, "with 3"),
        (Evidence(137 << 8, 0, 0, "", gofer_first=True), Reason.KILLED, "gofer"),
        (Evidence(None, 0, 0, ""), Reason.CRASHED, "no status"),
        (Evidence(None, 0, 0, "", holder_lost=True), Reason.ENGINE_ERROR, "holder"),
        (Evidence(None, 1, 0, "", holder_lost=True), Reason.OOM, "memory"),
    ],
)
def test_the_cause_is_named(evidence: Evidence, reason: Reason, word: str) -> None:
    found, detail = explain(evidence)
    assert found is reason
    assert word in detail


async def test_a_sentry_that_takes_its_time_to_follow_its_agent_is_waited_for() -> None:
    loop = asyncio.get_running_loop()
    sentry, gofer = loop.create_future(), loop.create_future()
    loop.call_later(2 * APART, sentry.set_result, 137 << 8)
    await ends([sentry, gofer])
    assert sentry.done()


async def test_one_that_lives_on_without_the_other_is_not_waited_for_long() -> None:
    loop = asyncio.get_running_loop()
    sentry, gofer = loop.create_future(), loop.create_future()
    gofer.set_result(9)
    async with asyncio.timeout(10 * APART):
        await ends([sentry, gofer])
    assert not sentry.done()
