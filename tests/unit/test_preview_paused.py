"""What becomes of clients of a sandbox that is paused or saved while they say something, connect or leave."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from corral.preview import desk, guest
from harness.preview_process import Agent, Client, Played, played, settled


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


async def test_connections_wait_for_the_next_server_where_none_knows_that_the_sandbox_is_paused(preview: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    client, agent, _ = await preview.websocket()
    with monkeypatch.context() as impatient:
        impatient.setattr(desk, "AWAY_PATIENCE", 0.0)
        preview.link.close()
        await settled()
        agent.die()
        await settled()
    preview.attach()
    preview.found(await preview.asked(wake=False), None)
    client.say(b"now")
    await preview.asked(wake=True)


async def test_nothing_is_kept_of_a_paused_sandbox_when_the_last_who_waits_has_left(preview: Played) -> None:
    client, agent, _ = await preview.websocket()
    agent.die()
    preview.found(await preview.asked(wake=False), None)
    await settled()
    client.leave()
    await settled()
    preview.attach()
    assert (await preview.hear(lambda message: "preview" in message))["boxes"] == []


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


async def answered(preview: Played, agent: Agent, client: Client) -> bool:
    """Whether the server inside is asked, and its answer comes."""
    channel = await agent.connect()
    await agent.received(channel, 1)
    await agent.data(channel, 1, 0, b"HTTP/1.1 204 No\r\n\r\n")
    return await client.status() == 204


async def test_who_comes_while_the_sandbox_is_being_paused_has_it_resumed(preview: Played) -> None:
    first = await preview.client()
    first.ask()
    agent = await preview.opened()
    assert await answered(preview, agent, first)
    first.leave()
    await preview.hush(agent)
    client = await preview.client()
    client.ask()
    await settled()
    agent.die()
    preview.found(await preview.asked(wake=False), None)
    preview.speak()
    preview.found(await preview.asked(wake=True), woken := preview.agent())
    await woken.greet()
    assert await answered(preview, woken, client)


async def test_who_comes_while_the_sandbox_is_saved_waits_as_long_as_that_takes(preview: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    _, agent, _ = await preview.websocket()
    await preview.hush(agent)
    with monkeypatch.context() as impatient:
        impatient.setattr(guest, "DIAL_TIMEOUT", 0.0)
        client = await preview.client()
        client.ask()
        await settled()
    preview.speak()
    assert await answered(preview, agent, client)


async def test_who_has_left_while_the_sandbox_was_saved_is_connected_with_nothing(preview: Played) -> None:
    _, agent, _ = await preview.websocket()
    await preview.hush(agent)
    left = await preview.client()
    left.ask()
    await settled()
    left.leave()
    await settled()
    client = await preview.client()
    client.ask("/after")
    await settled()
    preview.speak()
    number, request = await agent.request()
    assert request["op"] == "dial"
    await agent.answer(number, {"ok": True})
    assert b"/after" in await agent.received(request["channel"], 1)
