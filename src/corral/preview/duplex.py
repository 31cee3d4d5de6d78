"""Two ways of bytes between which requests pass: a client's connection, a connection to the server, a stream to a port inside a sandbox."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol, cast

from corral.preview.head import END, BadHead

_HELD = 256 << 10
"""Bytes that wait for whoever reads before the peer is slowed down."""
_GATHER = 256 << 10
"""Bytes that one read gives at most, unless a single piece is larger."""


class Broken(Exception):
    """The connection ended in the middle."""


class Duplex(Protocol):
    """`read` gives what has come, b"" once the peer has ended its direction. Both raise `Broken`."""

    async def read(self) -> bytes: ...
    async def write(self, data: bytes, /) -> None: ...
    def offer(self, data: bytes, /) -> bool:
        """Write the whole of it if that needs no waiting; else nothing of it."""
        ...

    def finish(self) -> None:
        """End our direction after what was written; the other goes on."""
        ...

    def close(self) -> None: ...

    @property
    def spent(self) -> bool:
        """Whether nothing more can be asked over it: the peer has ended its direction, or said what nobody asked for."""
        ...


class Connection(asyncio.Protocol):
    """A TCP, TLS or Unix connection as a `Duplex`."""

    def __init__(self, started: Callable[[Connection], None] | None = None) -> None:
        self._started = started
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._pieces: deque[bytes] = deque()
        self._held = 0
        self._paused = False
        self._ended = False
        self._lost = False
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._full = False
        self.on_ended: Callable[[], None] | None = None
        """Called when the peer has ended its direction, or the connection is lost, while somebody is answering it."""

    # From the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's are of no class that could be asked for.
        self._transport = cast("asyncio.Transport", transport)
        if self._started is not None:
            self._started(self)

    def data_received(self, data: bytes) -> None:
        self._pieces.append(data)
        self._held += len(data)
        if self._held > _HELD and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._wake_reader()

    def eof_received(self) -> bool:
        self._end()
        # TLS has no half of a connection.
        return self._transport is not None and self._transport.get_extra_info("sslcontext") is None

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._lost = True
        self._end()
        if self._writer is not None and not self._writer.done():
            self._writer.set_result(None)

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        if self._writer is not None and not self._writer.done():
            self._writer.set_result(None)

    def _end(self) -> None:
        self._ended = True
        self._wake_reader()
        if self.on_ended is not None:
            self.on_ended()

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    # For us

    @property
    def lost(self) -> bool:
        return self._lost

    @property
    def ended(self) -> bool:
        """Whether the peer has ended its direction."""
        return self._ended

    @property
    def spent(self) -> bool:
        return self._ended or self._lost or bool(self._pieces)

    @property
    def peer(self) -> str:
        """The other end's address."""
        address: object = None if self._transport is None else self._transport.get_extra_info("peername")
        return str(cast("tuple[object, ...]", address)[0]) if isinstance(address, tuple) and address else ""

    @property
    def secure(self) -> bool:
        return self._transport is not None and self._transport.get_extra_info("sslcontext") is not None

    async def read(self) -> bytes:
        while not self._pieces:
            if self._lost:
                raise Broken("the connection was lost")
            if self._ended:
                return b""
            self._reader = self._loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        piece = self._pieces.popleft()
        if self._pieces and len(piece) < _GATHER:
            parts = [piece]
            size = len(piece)
            while self._pieces and size < _GATHER:
                parts.append(self._pieces.popleft())
                size += len(parts[-1])
            piece = b"".join(parts)
        self._held -= len(piece)
        if self._paused and self._held <= _HELD // 2 and self._transport is not None and not self._lost:
            self._paused = False
            self._transport.resume_reading()
        return piece

    def offer(self, data: bytes) -> bool:
        if self._full or self._lost or self._transport is None:
            return False
        self._transport.write(data)
        return True

    async def write(self, data: bytes) -> None:
        if self._lost or self._transport is None:
            raise Broken("the connection was lost")
        self._transport.write(data)
        while self._full and not self._lost:
            self._writer = self._loop.create_future()
            try:
                await self._writer
            finally:
                self._writer = None
        if self._lost:
            raise Broken("the connection was lost")

    def finish(self) -> None:
        if self._transport is None or self._lost:
            return
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self._transport.close()

    def close(self) -> None:
        """What was written is still sent."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class Inlet:
    """What comes from a duplex, with what was read too far put back."""

    def __init__(self, source: Duplex) -> None:
        self._source = source
        self._rest = b""

    @property
    def buffered(self) -> bool:
        return bool(self._rest)

    async def read(self) -> bytes:
        if self._rest:
            data, self._rest = self._rest, b""
            return data
        return await self._source.read()

    def put_back(self, data: bytes) -> None:
        self._rest = data + self._rest if self._rest else data

    async def head(self, limit: int, *, skip_lines: bool = False) -> bytes | None:
        """The bytes up to and with an empty line; None at an orderly end before the first. `skip_lines`: empty lines before it are dropped (RFC 9112, 2.2).

        Raises `BadHead` when there are more than `limit`, `Broken` when they end too soon.
        """
        buffer = bytearray()
        looked = 0
        while True:
            data = await self.read()
            if not data:
                if buffer:
                    raise Broken("the connection ended within a head")
                return None
            buffer += data
            if skip_lines and not looked:
                while buffer.startswith(b"\r\n"):
                    del buffer[:2]
            end = buffer.find(END, max(0, looked - 3))
            if end >= 0 and end + 4 <= limit:
                self._rest = bytes(buffer[end + 4 :])
                return bytes(buffer[: end + 4])
            if end >= 0 or len(buffer) > limit:
                raise BadHead(431, f"the head has more than {limit >> 10} KiB", code="head_too_large")
            if b"\n\n" in buffer[max(0, looked - 1) :] or buffer.startswith(b"\n"):
                raise BadHead(400, "a line of the head does not end with CR LF")
            looked = len(buffer)
