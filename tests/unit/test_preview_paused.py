"""What becomes of clients of a sandbox that is paused or saved while they say something, connect or leave."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from harness.preview_process import Played, played, settled


@pytest.fixture
async def preview(tmp_path: Path) -> AsyncIterator[Played]:
    async with played(tmp_path) as process:
        yield process


async def test_what_was_said_while_nothing_might_be_sent_wakes_the_sandbox(preview: Played) -> None:
    client, agent, channel = await preview.websocket()
    await preview.hush(agent)
    client.say(b"said meanwhile")
    await settled()
    agent.die()
    preview.found(await preview.asked(wake=False), None)
    preview.speak()
    woken = preview.agent()
    preview.found(await preview.asked(wake=True), woken)
    await woken.greet({"channel": channel, "kind": "dial", "received": {"0": 0}, "ended": None})
    assert (await woken.received(channel, 1)).endswith(b"said meanwhile")


async def test_who_has_said_nothing_wakes_nobody(preview: Played) -> None:
    client, agent, _ = await preview.websocket()
    await preview.hush(agent)
    agent.die()
    preview.found(await preview.asked(wake=False), None)
    preview.speak()
    await settled()
    assert not preview.asks
    client.say(b"now")
    await preview.asked(wake=True)
