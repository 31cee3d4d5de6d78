"""A local address whose connections end at a port inside a sandbox, in a thread of its own: the client with await and the blocking one use the same."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Self
from urllib.parse import urlsplit

from corral.errors import BY_CODE, CorralError, InternalError, Unavailable
from corral.sdk.retry import Lost
from corral.sdk.websocket import Closed, WebSocket

PROTOCOL = "corral-tcp"
CONNECT_SECONDS = 30.0
HEAD = 64 << 10
PIECE = 256 << 10


class Forward:
    """Listens from `start` on. `failure` is why the last connection could not be made; those whose connection fails are reset."""

    def __init__(self, url: str, headers: Mapping[str, str], *, host: str, port: int, dial: str | None = None) -> None:
        """`url`: the tunnel's, ws or wss. `host`, `port`: where to listen, 0 for any free port. `dial`: the address of the URL's host, where names don't tell it."""
        parts = urlsplit(url)
        self._tls = ssl.create_default_context() if parts.scheme == "wss" else None
        self._name = parts.hostname or ""
        self._at = (dial or self._name, parts.port or (443 if self._tls else 80))
        self._authority = parts.netloc
        self._path = parts.path
        self._headers = headers
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
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(listener, ready)), name=f"corral tunnel {self._path}", daemon=True)
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
            whole = await self._relay(reader, writer)
        except CorralError as error:
            self.failure = error
        except (OSError, TimeoutError, Lost, asyncio.IncompleteReadError) as error:
            self.failure = Unavailable(f"the tunnel broke: {error or type(error).__name__}", hint="is the server there? `corral doctor` tells")
        finally:
            if not whole:
                # A reset, so that nobody takes what has come for the whole.
                with suppress(OSError):
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
            else:
                writer.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether both directions came to their ends."""
        async with asyncio.timeout(CONNECT_SECONDS):
            far_reader, far_writer = await asyncio.open_connection(*self._at, limit=PIECE, ssl=self._tls, server_hostname=self._name if self._tls else None)
        try:
            async with asyncio.timeout(CONNECT_SECONDS * 2):
                line = await self._open(far_reader, far_writer)
            ways = [asyncio.create_task(_up(line, reader, far_writer)), asyncio.create_task(_down(line, far_reader, far_writer, writer))]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_EXCEPTION)
                return all(way.done() and way.exception() is None for way in ways)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
                with suppress(OSError):
                    far_writer.write(line.close())
        finally:
            far_writer.close()

    async def _open(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> WebSocket:
        line = WebSocket()
        fields = [("Host", self._authority), ("Sec-WebSocket-Protocol", PROTOCOL), *self._headers.items()]
        fields += [(name.decode(), value.decode()) for name, value in line.handshake()]
        writer.write("\r\n".join([f"GET {self._path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields), "", ""]).encode())
        await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (field.partition(":") for field in head[1:]) if name}
        status = head[0].split(" ")[1] if " " in head[0] else ""
        if status != "101":
            length = headers.get("content-length", "")
            raise _error(status, await reader.readexactly(min(int(length), HEAD)) if length.isdigit() else b"")
        line.check(headers)
        return line


async def _up(line: WebSocket, reader: asyncio.StreamReader, far: asyncio.StreamWriter) -> None:
    while data := await reader.read(PIECE):
        far.write(line.message(data))
        await far.drain()
    far.write(line.message(b""))
    await far.drain()


async def _down(line: WebSocket, far: asyncio.StreamReader, far_writer: asyncio.StreamWriter, writer: asyncio.StreamWriter) -> None:
    while data := await far.read(PIECE):
        for message in line.feed(data):
            if isinstance(message, Closed):
                raise Lost(f"the tunnel was closed: {message.reason or message.code}")
            if not message:
                writer.write_eof()
                return
            writer.write(message)
        if outgoing := line.take_outgoing():
            far_writer.write(outgoing)
        await writer.drain()
    raise Lost("the server hung up")


def _error(status: str, body: bytes) -> CorralError:
    try:
        told: dict[str, Any] = json.loads(body)["error"]
        kind = BY_CODE.get(told["code"], Unavailable if status.startswith("5") else InternalError)
        return kind(str(told["message"]), hint=told.get("hint"), details={"code": told["code"]})
    except (ValueError, KeyError, TypeError):
        return Unavailable(f"the tunnel was refused with the status {status or '?'}", hint="is this the URL of a Corral server?")
