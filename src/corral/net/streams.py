"""Connections of the proxy as streams that read little at a time, so that what waits in their buffers is bounded for a sandbox and for the process.

asyncio's own read 256 KiB at once, and twice as much ahead. Of each direction these have a few reads in memory at most: one that was read ahead, one that is looked at, one that is being written.
How large a read is depends on how many connections there are.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from asyncio import sslproto
from collections.abc import Generator

MOST = 16 << 10
"""Bytes of a read while few connections are open."""
LEAST = 4 << 10
RECORD = 16 << 10
"""Bytes of a read of a connection with TLS, always: a record of TLS has that many at most."""
OF_SANDBOX, OF_PROCESS = 2 << 20, 8 << 20
"""Bytes that all connections of a sandbox, and all of the process, read in one turn, as long as that is more than `LEAST` for each."""

_scratch = memoryview(bytearray(MOST))
"""What was received, until it is copied a moment later."""


class Room:
    """What the connections of one sandbox, or (without `within`) of all, share."""

    def __init__(self, size: int = OF_PROCESS, within: Room | None = None) -> None:
        self._size = size
        self._within = within
        self._open = 0

    @contextlib.contextmanager
    def taken(self) -> Generator[None]:
        """While a connection is open."""
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    @property
    def share(self) -> int:
        """Bytes that one of them may read at once."""
        share = min(MOST, self._size // max(1, self._open))
        return max(LEAST, share if self._within is None else min(share, self._within.share))

    def _count(self, change: int) -> None:
        self._open += change
        if self._within is not None:
            self._within._count(change)


EVERYBODY = Room()
"""The process's."""


class _Protocol(asyncio.StreamReaderProtocol, asyncio.BufferedProtocol):
    """Of a reader that is paused while it has anything."""

    def __init__(self, reader: asyncio.StreamReader, room: Room, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(reader, loop=loop)
        self._room = room

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert isinstance(transport, asyncio.Transport)
        transport.set_write_buffer_limits(high=min(RECORD, self._room.share))

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        return _scratch[: self._room.share]

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(_scratch[:nbytes]))


async def accepted(
    connection: socket.socket, room: Room, context: ssl.SSLContext | None, *, handshake: float, shutdown: float
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """The server's side of a connection; it gets a descriptor of its own. `handshake` and `shutdown`: seconds for those of TLS. Raises `OSError`, `TimeoutError`."""
    loop, reader, protocol = _made(room)
    transport, _ = await loop.connect_accepted_socket(
        lambda: protocol,
        connection.dup(),
        ssl=context,
        ssl_handshake_timeout=handshake if context else None,
        ssl_shutdown_timeout=shutdown if context else None,
    )
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


async def connected(
    connection: socket.socket, room: Room, context: ssl.SSLContext | None, *, name: str | None = None, handshake: float
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """The client's side. `name`: whose certificate is wanted. Raises `OSError`, `TimeoutError`."""
    loop, reader, protocol = _made(room)
    transport, _ = await loop.create_connection(
        lambda: protocol, sock=connection, ssl=context, server_hostname=name if context else None, ssl_handshake_timeout=handshake if context else None
    )
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


def _made(room: Room) -> tuple[asyncio.AbstractEventLoop, asyncio.StreamReader, _Protocol]:
    loop = asyncio.get_running_loop()
    # What a connection with TLS receives before it is decrypted, of which each has a buffer.
    sslproto.SSLProtocol.max_size = RECORD
    reader = asyncio.StreamReader(1, loop)
    return loop, reader, _Protocol(reader, room, loop)
