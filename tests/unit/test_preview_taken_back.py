"""Who was let in by what was so when it was asked, and is not so any more when it is answered."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from corral.net.edge_link import Link
from corral.preview.desk import Desk
from harness.preview_process import Played, played, settled

KEY = "Corral-Key: ck_" + "0" * 40


@pytest.fixture
async def preview(tmp_path: Path) -> AsyncIterator[Played]:
    async with played(tmp_path) as process:
        yield process


async def test_a_token_rotated_between_question_and_answer_opens_nothing(preview: Played) -> None:
    client = await preview.client()
    client.ask()
    preview.found(await preview.asked(), old := preview.agent())
    preview.rotate()
    preview.found(await preview.asked(), agent := preview.agent(), token="pt_second")
    await agent.greet()
    assert await client.status() == 403
    old.lent.close()
    assert old.socket.recv(1) == b"", "the descriptor of the first answer is kept"


async def test_a_token_rotated_while_nothing_may_be_said_to_the_sandbox_opens_nothing(preview: Played) -> None:
    client = await preview.client()
    client.ask()
    preview.tell({"op": "hush", "sandbox": "sb-a"})
    preview.found(await preview.asked(), preview.agent())
    await settled()
    preview.rotate()
    preview.speak()
    preview.found(await preview.asked(), agent := preview.agent(), token="pt_second")
    await agent.greet()
    assert await client.status() == 403


async def test_a_key_revoked_just_after_it_was_believed_opens_nothing(preview: Played) -> None:
    client = await preview.client()
    client.ask("/", KEY, token=None)
    await preview.opened()
    preview.tell({"a": (await preview.asked("key"))["q"], "opens": True})
    preview.tell({"op": "keys"})
    preview.tell({"a": (await preview.asked("key"))["q"], "opens": False})
    assert await client.status() == 403


@pytest.mark.parametrize("upgrade", [("Connection: Upgrade", "Upgrade: websocket"), ()])
async def test_a_token_rotated_while_the_sandbox_is_woken_opens_nothing(preview: Played, upgrade: tuple[str, ...]) -> None:
    client = await preview.client()
    client.ask("/", *upgrade)
    preview.found(await preview.asked(wake=False), None)
    waking = await preview.asked(wake=True)
    preview.rotate()
    preview.found(waking, preview.agent(), token="pt_second")
    preview.found(await preview.asked(wake=True), agent := preview.agent(), token="pt_second")
    await agent.greet()
    assert await client.status() == 403


async def test_a_key_revoked_while_the_sandbox_is_woken_opens_nothing(preview: Played) -> None:
    client = await preview.client()
    client.ask("/", KEY, token=None)
    preview.found(await preview.asked(wake=False), None)
    preview.tell({"a": (await preview.asked("key"))["q"], "opens": True})
    waking = await preview.asked(wake=True)
    preview.tell({"op": "keys"})
    preview.found(waking, agent := preview.agent())
    await agent.greet()
    preview.tell({"a": (await preview.asked("key"))["q"], "opens": False})
    assert await client.status() == 403


async def test_a_descriptor_that_comes_when_nobody_waits_any_more_is_closed() -> None:
    near, far = socket.socketpair()
    desk = Desk()
    desk.attach(link := Link(near, lambda _message, _fds: None, lambda: None))
    asking = asyncio.create_task(desk.ask(ask="box"))
    await settled()
    lent, kept = socket.socketpair()
    kept.setblocking(False)
    assert desk.answered(1, {}, [lent.detach()])
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert kept.recv(1) == b""
    kept.close()
    link.close()
    far.close()
