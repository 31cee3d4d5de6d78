"""Answers that go on: pieces of bytes as they come, until they end, the client hangs up, or the server leaves.

The pieces come from an async generator that is pulled only as fast as the client reads. A client that hangs up cancels it at once; a server that
leaves ends the answer early, which clients take as a reason to come back at their offset.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar

import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from corral.api import errors
from corral.errors import InvalidArgument

T = TypeVar("T")

KEEP_ALIVE = 15.0
"""Seconds without an event after which a comment line is sent."""
EVENT_STREAM = "text/event-stream"

log = structlog.get_logger(__name__)


class Closable(Protocol):
    """Something that must be closed even if nobody began to read it."""

    async def aclose(self) -> None: ...


class Streams:
    """What goes on for long, so that a server that leaves can end it."""

    def __init__(self) -> None:
        self._open: set[asyncio.Task[Any]] = set()
        self.leaving = False

    def add(self, task: asyncio.Task[Any]) -> None:
        self._open.add(task)
        task.add_done_callback(self._open.discard)
        if self.leaving:
            task.cancel()

    def end(self) -> None:
        """End all, and those that begin from now on."""
        self.leaving = True
        for task in self._open:
            task.cancel()


class ByteStream(Response):
    """Pieces of bytes as they are. `on_hang_up` is awaited when the client left before the end; `owns` is closed at the end, whichever way that comes."""

    def __init__(
        self,
        pieces: AsyncGenerator[bytes, None],
        streams: Streams,
        *,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        media_type: str = "application/octet-stream",
        on_hang_up: Callable[[], Awaitable[None]] | None = None,
        owns: Closable | None = None,
    ) -> None:
        self.status_code = status
        self.media_type = media_type
        self.background = None
        self.init_headers(headers)
        self._pieces = pieces
        self._streams = streams
        self._on_hang_up = on_hang_up
        self._owns = owns

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        # First of all: an answer that a leaving server cuts before it has begun would be a failure, and not a reason to come back.
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        pump = loop.create_task(self._pump(send))
        self._streams.add(pump)
        watch = loop.create_task(hung_up(receive))
        try:
            await asyncio.wait((pump, watch), return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone = watch.done() and not pump.done()
            pump.cancel()
            watch.cancel()
            await asyncio.wait((pump, watch))
            if self._owns is not None:
                await self._owns.aclose()
            if gone and self._on_hang_up is not None and not self._streams.leaving:
                await asyncio.shield(self._on_hang_up())
        if not pump.cancelled() and (error := pump.exception()) is not None:
            # The answer has begun: that it ends before its end is all that can be said of it.
            log.warning("answer_cut_short", path=scope["path"], error=str(error) or type(error).__name__)

    async def _pump(self, send: Send) -> None:
        await self._body(send)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _body(self, send: Send) -> None:
        async with finishing(self._pieces) as pieces:
            async for piece in pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})


class EventStream(ByteStream):
    """Server-sent events (see `event`). An error becomes the event `error`, whose data is an error body; then the stream ends."""

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        streams: Streams,
        *,
        status: int = 200,
        on_hang_up: Callable[[], Awaitable[None]] | None = None,
        owns: Closable | None = None,
    ) -> None:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(events, streams, status=status, headers=headers, media_type=EVENT_STREAM, on_hang_up=on_hang_up, owns=owns)

    async def _body(self, send: Send) -> None:
        loop = asyncio.get_running_loop()
        sent = loop.time()
        said: set[asyncio.Task[None]] = set()

        def keep_alive() -> None:
            nonlocal timer
            quiet = loop.time() - sent
            if quiet >= KEEP_ALIVE:
                said.add(task := loop.create_task(_say(send, b":\n\n")))
                task.add_done_callback(said.discard)
                quiet = 0.0
            timer = loop.call_later(KEEP_ALIVE - quiet, keep_alive)

        timer = loop.call_later(KEEP_ALIVE, keep_alive)
        try:
            async with finishing(self._pieces) as pieces:
                async for piece in pieces:
                    sent = loop.time()
                    await _say(send, piece)
        except Exception as error:
            await _say(send, event(errors.body(errors.translate(error)), name="error"))
        finally:
            timer.cancel()


def last_event_id(request: Request) -> int | None:
    """The number of the event after which a client wants to go on. Raises `InvalidArgument`."""
    last = request.headers.get("last-event-id")
    if not last:
        return None
    if not last.isdecimal() or len(last) > 19:
        raise InvalidArgument(f"Last-Event-ID: {last[:60]!r} is no number", details={"field": "Last-Event-ID"})
    return int(last)


def event(data: bytes, *, name: str, id: str | None = None) -> bytes:
    """One event. `data` is a line of JSON."""
    head = b"" if id is None else b"id: %b\n" % id.encode()
    return b"%bevent: %b\ndata: %b\n\n" % (head, name.encode(), data)


@asynccontextmanager
async def finishing(items: AsyncIterator[T]) -> AsyncGenerator[AsyncIterator[T], None]:
    """What can be closed is closed where its use ends, not when it is collected."""
    try:
        yield items
    finally:
        close: Callable[[], Awaitable[None]] | None = getattr(items, "aclose", None)
        if close is not None:
            await close()


async def _say(send: Send, piece: bytes) -> None:
    await send({"type": "http.response.body", "body": piece, "more_body": True})


async def while_asked(request: Request, doing: Awaitable[T]) -> T:
    """What takes long before an answer can begin; cancelled when the client hangs up meanwhile. Raises `ClientDisconnect` then. Only after the request's body was read."""
    work, watch = asyncio.ensure_future(doing), asyncio.ensure_future(hung_up(request.receive))
    try:
        await asyncio.wait((work, watch), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return await work
    finally:
        work.cancel()
        watch.cancel()
        await asyncio.wait((work, watch))


async def hung_up(receive: Receive) -> None:
    """Returns when the client has closed the connection. Only after the request's body was read."""
    while (await receive())["type"] != "http.disconnect":
        pass
