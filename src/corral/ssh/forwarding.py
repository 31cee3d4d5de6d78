"""A connection to a port of the sandbox, forwarded by SSH."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

import asyncssh

from corral.sdk.forward import Connected

HELD = 1 << 20
"""Bytes that wait for the other side before nothing more is read."""


class Channel(Protocol):
    """What the kinds of channels of SSH have in common, as far as bytes go."""

    def write(self, data: bytes, /) -> None: ...
    def write_eof(self) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


class Flow:
    """Bytes of a channel as they come in, with an end to how many may wait. Also the way out, which waits while the client takes none."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._pieces: deque[bytes] = deque()
        self._held = 0
        self._paused = False
        self._ended = False
        self._came = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self.lost = False

    def take(self, data: bytes) -> None:
        self._pieces.append(data)
        self._held += len(data)
        if self._held > HELD and not self._paused:
            self._paused = True
            self._channel.pause_reading()
        self._came.set()

    def end(self) -> None:
        self._ended = True
        self._came.set()

    def lose(self) -> None:
        """Nobody is there any more."""
        self.lost = True
        self.end()
        self._writable.set()

    def writable(self, *, yes: bool) -> None:
        (self._writable.set if yes else self._writable.clear)()

    async def read(self, n: int = -1) -> bytes:
        while not self._pieces:
            if self._ended:
                return b""
            self._came.clear()
            await self._came.wait()
        data = self._pieces.popleft() if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._held = 0
        if self._paused:
            self._paused = False
            self._channel.resume_reading()
        return data

    def write(self, data: bytes) -> None:
        if not self.lost:
            self._channel.write(data)

    def write_eof(self) -> None:
        if not self.lost:
            self._channel.write_eof()

    async def drain(self) -> None:
        await self._writable.wait()
        if self.lost:
            raise ConnectionResetError("the client has left")


class Forwarded(asyncssh.SSHTCPSession[bytes]):
    """What the client's channel and the connection inside say to each other."""

    def __init__(self, connected: Connected) -> None:
        self._connected = connected
        self._flow: Flow | None = None
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, chan: asyncssh.SSHTCPChannel[bytes]) -> None:
        self._channel = chan
        self._flow = Flow(chan)

    def session_started(self) -> None:
        self._task = asyncio.create_task(self._carry())

    async def _carry(self) -> None:
        assert self._flow is not None
        whole = await self._connected.carry(self._flow, self._flow)
        if whole:
            self._channel.close()
        else:
            self._channel.abort()

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        assert self._flow is not None
        self._flow.take(data)

    def eof_received(self) -> bool:
        assert self._flow is not None
        self._flow.end()
        return True

    def pause_writing(self) -> None:
        assert self._flow is not None
        self._flow.writable(yes=False)

    def resume_writing(self) -> None:
        assert self._flow is not None
        self._flow.writable(yes=True)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._flow is not None:
            self._flow.lose()
        if self._task is not None:
            self._task.cancel()
        else:
            self._connected.close()
