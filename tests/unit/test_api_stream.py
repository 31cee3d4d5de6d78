"""Answers that go on, as an ASGI server sees them: pieces, keep-alives, errors, a client that hangs up, a server that leaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from corral.api import stream
from corral.api.stream import ByteStream, EventStream, Streams, event
from corral.errors import SandboxEnded


class Client:
    """The other end: what it received, and whether it is still there."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.gone = asyncio.Event()
        self.arrived = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.messages.append(message)
        if message.get("body"):
            self.arrived.set()

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)

    @property
    def complete(self) -> bool:
        return self.messages[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


class Source:
    """Pieces that a test gives one by one; remembers that it was closed."""

    def __init__(self, *pieces: bytes | Exception | None) -> None:
        self.given = pieces
        self.closed = False

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        try:
            for piece in self.given:
                match piece:
                    case None:
                        await asyncio.Event().wait()
                    case Exception():
                        raise piece
                    case bytes():
                        yield piece
        finally:
            self.closed = True

    async def aclose(self) -> None:
        self.closed = True


SCOPE: dict[str, Any] = {"type": "http", "path": "/x"}


async def test_pieces_come_in_order_and_the_end_is_told() -> None:
    client, source = Client(), Source(b"a", b"b")
    await ByteStream(source.pieces(), Streams(), status=206, headers={"X": "y"})(SCOPE, client.receive, client.send)
    assert client.messages[0]["status"] == 206
    assert (b"x", b"y") in client.messages[0]["headers"]
    assert client.body == b"ab"
    assert client.complete


async def test_a_client_that_hangs_up_ends_the_source_and_is_told_of() -> None:
    client, source, told = Client(), Source(b"a", None), asyncio.Event()

    async def on_hang_up() -> None:
        assert source.closed
        told.set()

    answering = asyncio.create_task(EventStream(source.pieces(), Streams(), on_hang_up=on_hang_up)(SCOPE, client.receive, client.send))
    await client.arrived.wait()
    client.gone.set()
    await answering
    assert told.is_set()
    assert not client.complete


async def test_an_end_before_the_hang_up_is_no_hang_up() -> None:
    client, source = Client(), Source(b"a")

    async def on_hang_up() -> None:
        raise AssertionError("it had ended")

    await EventStream(source.pieces(), Streams(), on_hang_up=on_hang_up)(SCOPE, client.receive, client.send)
    client.gone.set()
    assert client.complete


async def test_a_server_that_leaves_ends_streams_early_and_without_a_hang_up() -> None:
    client, source, streams = Client(), Source(b"a", None), Streams()

    async def on_hang_up() -> None:
        raise AssertionError("it was the server that left")

    answering = asyncio.create_task(EventStream(source.pieces(), streams, on_hang_up=on_hang_up)(SCOPE, client.receive, client.send))
    await client.arrived.wait()
    streams.end()
    await answering
    assert source.closed
    assert not client.complete
    late = Client()
    await EventStream(Source(b"a").pieces(), streams)(SCOPE, late.receive, late.send)
    # Begun and cut, so that its client comes back: with nothing begun it would be told of a failure.
    assert [message["type"] for message in late.messages] == ["http.response.start"]


async def test_what_is_owned_is_closed_even_if_nobody_read_it() -> None:
    client, streams, source = Client(), Streams(), Source(b"a")
    streams.end()
    await ByteStream(source.pieces(), streams, owns=source)(SCOPE, client.receive, client.send)
    assert source.closed


async def test_quiet_streams_say_that_they_live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "KEEP_ALIVE", 0.01)
    client = Client()
    answering = asyncio.create_task(EventStream(Source(None).pieces(), Streams())(SCOPE, client.receive, client.send))
    await client.arrived.wait()
    client.gone.set()
    await answering
    assert client.body.startswith(b":\n\n")


@pytest.mark.parametrize(("error", "code"), [(SandboxEnded("it ended"), "sandbox_ended"), (RuntimeError("a bug"), "internal")])
async def test_an_error_in_the_middle_is_the_last_event(error: Exception, code: str) -> None:
    client = Client()
    await EventStream(Source(event(b"1", name="n", id="7"), error).pieces(), Streams())(SCOPE, client.receive, client.send)
    first, last = client.body.removesuffix(b"\n\n").split(b"\n\n")
    assert first == b"id: 7\nevent: n\ndata: 1"
    name, _, data = last.partition(b"\ndata: ")
    assert name == b"event: error"
    assert json.loads(data)["error"]["code"] == code


async def test_an_error_in_the_middle_of_bytes_cuts_the_answer_short() -> None:
    client = Client()
    await ByteStream(Source(b"a", SandboxEnded("it ended")).pieces(), Streams())(SCOPE, client.receive, client.send)
    assert client.body == b"a"
    assert not client.complete
