"""WS …/attach: a process' standard input and output on one connection, message by message. The path of terminals, and of whatever answers line by line.

Every message is `u8 kind, u64 offset (little-endian), bytes`.
server → client: 1 stdout · 2 stderr · 3 exit (a Process as JSON; then it closes) · 4 stdin accepted up to `offset` · 5 `u8 kind, u64 count`: so many bytes before `offset` are gone
client → server: 0 stdin at `offset` · 1 its end · 2 resize (u16 rows, u16 columns) · 3 signal (u8)
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from enum import IntEnum
from typing import Any, TypeVar, assert_never

from fastapi import APIRouter, WebSocket
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.websockets import WebSocketDisconnect, WebSocketState

from corral.api import errors
from corral.api.meter import Meter
from corral.api.services import Services
from corral.api.stream import finishing
from corral.control.ports import Chunk, ProcessBook
from corral.control.roles import Actor, Permission
from corral.errors import CorralError, InvalidArgument, InvalidState
from corral.node.notice import Notice
from corral.schema.process import Process, Signal, Stream, Terminal

routes = APIRouter()

HEADER = struct.Struct("<BQ")
SIZE = struct.Struct("<HH")
BACKLOG = 4 << 20
"""Bytes of standard input that wait for the sandbox before the connection is read no further."""

# RFC 6455, 7.4.1. Codes from 4000 on are for applications: here 4000 + an error's HTTP status.
NORMAL = 1000
GOING_AWAY = 1001

T = TypeVar("T")


class Kind(IntEnum):
    """What the server says."""

    STDOUT = 1
    STDERR = 2
    EXIT = 3
    STDIN_ACCEPTED = 4
    DROPPED = 5


class Order(IntEnum):
    """What the client says."""

    STDIN = 0
    EOF = 1
    RESIZE = 2
    SIGNAL = 3


class From(BaseModel):
    """Where the output begins."""

    model_config = ConfigDict(extra="forbid")

    stdout: int = Field(0, ge=0, lt=1 << 63)
    stderr: int = Field(0, ge=0, lt=1 << 63)


@routes.websocket("/v1/sandboxes/{sandbox}/processes/{process}/attach")
async def attach(socket: WebSocket, sandbox: str, process: str) -> None:
    """Attach to a process; any number of connections may."""
    services: Services = socket.app.state.services
    actor: Actor = socket.scope["state"]["actor"]
    try:
        actor.require(Permission.USE)
        start = From.model_validate(dict(socket.query_params))
        id = (await services.sandboxes.use(actor.project, sandbox)).id
        book = services.node.processes(id)
        book.get(process)
    except (CorralError, ValidationError) as error:
        known = errors.translate(error)
        services.meter.error(known.code)
        await socket.send_denial_response(errors.answer(known))
        return
    await socket.accept()

    async def wake() -> None:
        """What the client says is a use, which resumes the sandbox; looking on is none."""
        await services.sandboxes.use(actor.project, id, wake=True)

    await _Attached(socket, book, process, services.meter, wake).run(start, services)


class _Attached:
    """One connection."""

    def __init__(self, socket: WebSocket, book: ProcessBook, process: str, meter: Meter, wake: Callable[[], Awaitable[None]]) -> None:
        self._socket = socket
        self._book = book
        self._process = process
        self._meter = meter
        self._wake = wake
        self._stdin: deque[tuple[int, bytes, bool]] = deque()
        self._waiting = 0
        self._changed = Notice()

    async def run(self, start: From, services: Services) -> None:
        """Until the process has ended, the client leaves, or the server does."""
        loop = asyncio.get_running_loop()
        work: tuple[Coroutine[Any, Any, None], ...] = (self._give(start), self._take(), self._feed())
        tasks = [loop.create_task(one) for one in work]
        services.streams.add(tasks[0])
        code, reason = NORMAL, ""
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        for task in tasks:
            error = None if task.cancelled() else task.exception()
            if isinstance(error, Exception) and not isinstance(error, WebSocketDisconnect):
                known = errors.translate(error)
                self._meter.error(known.code)
                code, reason = 4000 + known.status, f"{known.code}: {known.message}"
        if services.streams.leaving:
            code, reason = GOING_AWAY, "the server is leaving; come back at your offsets"
        if self._socket.client_state is WebSocketState.CONNECTED and self._socket.application_state is WebSocketState.CONNECTED:
            with suppress(WebSocketDisconnect):  # it was cut while something was said
                await self._socket.close(code, _short(reason))

    async def _give(self, start: From) -> None:
        async with finishing(self._book.raw_output(self._process, start.stdout, start.stderr)) as items:
            async for item in items:
                if isinstance(item, Process):
                    await self._say(Kind.EXIT, 0, item.model_dump_json().encode())
                    return
                await self._say_output(item)

    async def _say_output(self, chunk: Chunk) -> None:
        kind = Kind.STDOUT if chunk.stream is Stream.STDOUT else Kind.STDERR
        if chunk.dropped:
            await self._say(Kind.DROPPED, chunk.offset, HEADER.pack(kind, chunk.dropped))
        self._meter.output.inc(len(chunk.data))
        await self._say(kind, chunk.offset, chunk.data)

    async def _take(self) -> None:
        """Read what the client says. Input waits for the sandbox in a queue, so that a signal overtakes it."""
        while True:
            message: Any = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            data: bytes | None = message.get("bytes")
            if data is None or len(data) < HEADER.size:
                raise InvalidArgument("a message has no header", hint="binary messages: u8 kind, u64 offset, bytes")
            number, offset = HEADER.unpack_from(data)
            try:
                order = Order(number)
            except ValueError:
                raise InvalidArgument(f"{number} is no kind of message") from None
            payload = data[HEADER.size :]
            match order:
                case Order.STDIN | Order.EOF:
                    self._stdin.append((offset, payload, order is Order.EOF))
                    self._waiting += len(payload)
                    self._changed.set()
                    while self._waiting > BACKLOG:
                        await self._changed.wait()
                case Order.RESIZE:
                    await self._unless_ended(self._book.resize(self._process, _size(payload)))
                case Order.SIGNAL:
                    await self._unless_ended(self._book.signal(self._process, _signal(payload)))
                case _:
                    assert_never(order)

    async def _feed(self) -> None:
        """Hand input to the sandbox in order, and say how far it has got."""
        while True:
            while not self._stdin:
                await self._changed.wait()
            offset, payload, eof = self._stdin.popleft()
            accepted = await self._unless_ended(self._book.write_stdin(self._process, payload, offset=offset, eof=eof))
            self._waiting -= len(payload)
            self._changed.set()
            if accepted is not None:
                self._meter.stdin.inc(len(payload))
                await self._say(Kind.STDIN_ACCEPTED, accepted, b"")

    async def _unless_ended(self, doing: Awaitable[T]) -> T | None:
        """None when the process has just ended, which the client is about to be told."""
        try:
            await self._wake()
            return await doing
        except InvalidState:
            if self._book.get(self._process).running:
                raise
            return None

    async def _say(self, kind: Kind, offset: int, data: bytes) -> None:
        await self._socket.send_bytes(HEADER.pack(kind, offset) + data)


def _size(payload: bytes) -> Terminal:
    if len(payload) != SIZE.size:
        raise InvalidArgument("a resize needs two u16: rows and columns")
    rows, cols = SIZE.unpack(payload)
    return Terminal.model_validate({"rows": rows, "cols": cols})


def _signal(payload: bytes) -> Signal:
    if len(payload) != 1:
        raise InvalidArgument("a signal needs one u8: its number")
    return Signal.model_validate({"signal": payload[0]})


def _short(reason: str) -> str:
    """RFC 6455: the reason of a close has at most 123 bytes."""
    return reason.encode()[:120].decode(errors="ignore")
