"""Connections to a port inside a sandbox (`Route`), and a local address of it, served in a thread of its own: the client with await and the blocking one use the same."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
import threading
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from typing import Any, Protocol, Self
from urllib.parse import urlsplit

from corral.errors import BY_CODE, CorralError, InternalError, Unavailable
from corral.schema.preview import Preview
from corral.sdk.connection import Connection
from corral.sdk.retry import Lost
from corral.sdk.websocket import Closed, WebSocket

PROTOCOL = "corral-tcp"
CONNECT_SECONDS = 30.0
AWAY_SECONDS = 15.0
"""For so long it is tried again while there is no edge: it may be on its way back."""
RETRY = (0.05, 1.0)
"""Seconds between two tries, at first and at most."""
HEAD = 64 << 10
PIECE = 256 << 10
BROKEN = (OSError, TimeoutError, Lost, asyncio.IncompleteReadError, asyncio.LimitOverrunError)


class Source(Protocol):
    """What bytes are read from; empty at the end."""

    async def read(self, n: int = ..., /) -> bytes: ...


class Sink(Protocol):
    """What bytes are written to."""

    def write(self, data: bytes, /) -> None: ...
    def write_eof(self) -> None: ...
    async def drain(self) -> None: ...


class Route:
    """The way to a port: a tunnel's URL, ws or wss, and the headers that open it."""

    def __init__(self, url: str, headers: Mapping[str, str], *, dial: str | None = None) -> None:
        """`dial`: the address of the URL's host, where names don't tell it."""
        parts = urlsplit(url)
        self._url, self._dial = url, dial
        self._tls = ssl.create_default_context() if parts.scheme == "wss" else None
        self._name = parts.hostname or ""
        self._at = (dial or self._name, parts.port or (443 if self._tls else 80))
        self._authority = parts.netloc
        self.path = parts.path
        self._headers = headers

    def beneath(self, path: str) -> Route:
        """The way to what is below this one's path."""
        return Route(f"{self._url}/{path}", self._headers, dial=self._dial)

    async def connect(self) -> Connected:
        """One connection. Raises what the edge refuses it with, `Unavailable` when there is none, also not a while later."""
        loop = asyncio.get_running_loop()
        until, pause = loop.time() + AWAY_SECONDS, RETRY[0]
        while True:
            try:
                return await self._connect()
            except BROKEN as error:
                if not _away(error) or loop.time() >= until:
                    raise broken(error) from None
            await asyncio.sleep(pause)
            pause = min(2 * pause, RETRY[1])

    async def _connect(self) -> Connected:
        async with asyncio.timeout(CONNECT_SECONDS):
            reader, writer = await asyncio.open_connection(*self._at, limit=PIECE, ssl=self._tls, server_hostname=self._name if self._tls else None)
        try:
            async with asyncio.timeout(CONNECT_SECONDS * 2):
                return Connected(await self._open(reader, writer), reader, writer)
        except BaseException:
            writer.close()
            raise

    async def _open(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> WebSocket:
        line = WebSocket()
        fields = [("Host", self._authority), ("Sec-WebSocket-Protocol", PROTOCOL), *self._headers.items()]
        fields += [(name.decode(), value.decode()) for name, value in line.handshake()]
        writer.write("\r\n".join([f"GET {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields), "", ""]).encode())
        await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (field.partition(":") for field in head[1:]) if name}
        status = head[0].split(" ")[1] if " " in head[0] else ""
        if status != "101":
            length = headers.get("content-length", "")
            raise _error(status, await reader.readexactly(min(int(length), HEAD)) if length.isdigit() else b"")
        line.check(headers)
        return line


def route(preview: Preview, connection: Connection, *, name: str | None = None) -> Route:
    """The way to a port, for the key of a connection; with a `name`, to offer that name and port inside."""
    url = preview.tunnel_url if name is None else f"{preview.tunnel_url.rpartition('/tunnels/')[0]}/exposed/{preview.port}/{name}"
    host = urlsplit(url).hostname or ""
    # Names below localhost don't resolve everywhere; the edge is where the server is.
    dial = urlsplit(connection.url).hostname if host.endswith("localhost") else None
    return Route(url, {"Corral-Key": connection.key} if connection.key else {}, dial=dial)


class Connected:
    """A connection to a port inside."""

    def __init__(self, line: WebSocket, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._line, self._reader, self._writer = line, reader, writer

    def close(self) -> None:
        self._writer.close()

    async def messages(self) -> AsyncGenerator[bytes]:
        """What is said, until the other side ends it."""
        while data := await self._reader.read(PIECE):
            for message in self._line.feed(data):
                if isinstance(message, Closed):
                    return
                yield message
            if outgoing := self._line.take_outgoing():
                self._writer.write(outgoing)
        raise Lost("the server hung up")

    async def carry(self, source: Source, sink: Sink) -> bool:
        """Bytes both ways; whether both directions came to their ends. Closes it."""
        ways = [asyncio.create_task(self._up(source)), asyncio.create_task(self._down(sink))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_EXCEPTION)
            return all(way.done() and way.exception() is None for way in ways)
        finally:
            for way in ways:
                way.cancel()
            try:
                await asyncio.gather(*ways, return_exceptions=True)
            finally:  # also when it is cancelled just here
                with suppress(OSError):
                    self._writer.write(self._line.close())
                self.close()

    async def _up(self, source: Source) -> None:
        while data := await source.read(PIECE):
            self._writer.write(self._line.message(data))
            await self._writer.drain()
        self._writer.write(self._line.message(b""))
        await self._writer.drain()

    async def _down(self, sink: Sink) -> None:
        while data := await self._reader.read(PIECE):
            for message in self._line.feed(data):
                if isinstance(message, Closed):
                    raise Lost(f"the tunnel was closed: {message.reason or message.code}")
                if not message:
                    sink.write_eof()
                    return
                sink.write(message)
            if outgoing := self._line.take_outgoing():
                self._writer.write(outgoing)
            await sink.drain()
        raise Lost("the server hung up")


class Forward:
    """Listens from `start` on. `failure` is why the last connection could not be made; those whose connection fails are reset."""

    def __init__(self, route: Route, *, host: str, port: int) -> None:
        """`host`, `port`: where to listen, 0 for any free port."""
        self._route = route
        self._bound = (host, port)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread: threading.Thread | None = None
        self.address = self._bound
        self.failure: CorralError | None = None

    def start(self) -> Self:
        """Raises `OSError` when the local port is taken."""
        listener = socket.create_server(self._bound, backlog=1024)
        self.address = listener.getsockname()[:2]
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(listener, ready)), name=f"corral tunnel {self._route.path}", daemon=True)
        self._thread.start()
        ready.wait()
        return self

    def stop(self) -> None:
        """Ends its connections. Idempotent."""
        if self._thread is not None and self._loop is not None and self._stop is not None:
            with suppress(RuntimeError):  # the loop has ended already
                self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
            self._thread = None

    async def _serve(self, listener: socket.socket, ready: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        tasks: set[asyncio.Task[None]] = set()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(self._carry(reader, writer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            task.add_done_callback(lambda _: writer.close())  # also when its turn never came

        server = await asyncio.start_server(accept, sock=listener, limit=PIECE)
        ready.set()
        await self._stop.wait()
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        whole = False
        try:
            whole = await (await self._route.connect()).carry(reader, writer)
        except CorralError as error:
            self.failure = error
        except BROKEN as error:
            self.failure = broken(error)
        finally:
            if not whole:
                # A reset, so that nobody takes what has come for the whole.
                with suppress(OSError):
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
            else:
                writer.close()


def _away(error: BaseException) -> bool:
    """Whether there was no edge that could have said anything."""
    if isinstance(error, asyncio.IncompleteReadError):
        return not error.partial
    return isinstance(error, OSError) and not isinstance(error, TimeoutError | socket.gaierror | ssl.SSLError)


def broken(error: BaseException) -> Unavailable:
    return Unavailable(f"the tunnel broke: {str(error) or type(error).__name__}", hint="is the server there? `corral doctor` tells")


def _error(status: str, body: bytes) -> CorralError:
    try:
        told: dict[str, Any] = json.loads(body)["error"]
        kind = BY_CODE.get(told["code"], Unavailable if status.startswith("5") else InternalError)
        return kind(str(told["message"]), hint=told.get("hint"), details={"code": told["code"]})
    except (ValueError, KeyError, TypeError):
        return Unavailable(f"the tunnel was refused with the status {status or '?'}", hint="is this the URL of a Corral server?")
