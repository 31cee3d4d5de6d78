"""The preview process: the edge of an installation, apart from the server so that neither can stall the other, and so that connections outlive the server.

`python -I -m corral.preview.process SOCKET --listener FD`. What is said over the socket: `desk.py`. In order: the socket listens; a server connects and hands over the listeners of the edge; then
requests are served. It knows nothing that it was not told, and believes no key itself.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import resource
import signal
import socket
import ssl
import struct
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import structlog
import uvloop

from corral.net.edge_link import Link
from corral.preview.boxes import Boxes
from corral.preview.desk import Desk
from corral.preview.doors import Table, from_message
from corral.preview.duplex import Connection
from corral.preview.proxy import Proxy

VERSION = 6
DESCRIPTORS = 1 << 20
HANDSHAKE_SECONDS = 20.0


class Process:
    """The process's state, and what the server may tell it."""

    def __init__(self) -> None:
        self.stopped = asyncio.Event()
        self._desk = Desk()
        self._boxes = Boxes(self._desk)
        self._proxy = Proxy(self._desk, self._boxes)
        self._desk.on_attach = self._boxes.retell
        self._link: Link | None = None
        self._servers: dict[bool, asyncio.Server] = {}
        """By whether they speak TLS."""
        self._listening: dict[bool, tuple[str, int]] = {}
        self._context: ssl.SSLContext | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def accept(self, listener: socket.socket) -> None:
        """A server comes. The newest is the one that lives."""
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        if struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1] not in (0, os.geteuid()):
            connection.close()
            return
        if self._link is not None:
            self._link.close()
            self._desk.detach()
            self._boxes.alone()
        self._link = Link(connection, self._message, self._lost)
        self._link.send(
            {"preview": VERSION, "pid": os.getpid(), "listens": [[secure, *at] for secure, at in self._listening.items()], "boxes": self._boxes.ids()}
        )
        self._desk.attach(self._link)

    def _lost(self) -> None:
        self._link = None
        self._desk.detach()
        self._boxes.alone()

    def _message(self, message: dict[str, Any], fds: list[int]) -> None:
        if "a" in message:
            if not self._desk.answered(message["a"], message, fds):
                _close(fds)
            return
        match message["op"]:
            case "config":
                self._configure(message, fds)
                return
            case "settings":
                self._boxes.change(message["sandbox"], message)
                self._proxy.look_again(message["sandbox"])
            case "back":
                self._boxes.back(message["sandbox"])
            case "drop":
                self._boxes.drop(message["sandbox"])
            case "hush":
                self._do(self._hush(message["sandbox"]))
            case "speak":
                self._boxes.speak(message["sandbox"])
            case "keys":
                self._proxy.look_again()
            case "stop":
                self.stopped.set()
            case _:
                complain("the server said what is not understood", None)
        _close(fds)

    def _configure(self, message: dict[str, Any], fds: list[int]) -> None:
        self._proxy.configure(Table(tuple(message["domains"]), from_message(message["doors"])), tuple(message["door"]), front=message["front"])
        self._proxy.forget_keys()
        if message["chain"] is not None:
            self._context = self._context or ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.set_alpn_protocols(["http/1.1"])
            self._context.load_cert_chain(message["chain"])
        fresh = {bool(secure): socket.socket(fileno=fd) for secure, fd in zip(message["fresh"], fds, strict=True)}
        for secure in [secure for secure in self._servers if secure in fresh or (secure and message["chain"] is None)]:
            self._servers.pop(secure).close()
            del self._listening[secure]
        for secure, listener in fresh.items():
            self._listening[secure] = listener.getsockname()[:2]
            self._do(self._listen(listener, secure=secure))

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _hush(self, sandbox: str) -> None:
        await self._boxes.hush(sandbox)
        self._desk.tell(hushed=sandbox)

    async def _listen(self, listener: socket.socket, *, secure: bool) -> None:
        def connection() -> Connection:
            return Connection(self._proxy.accept)

        loop = asyncio.get_running_loop()
        context = self._context if secure else None
        handshake = HANDSHAKE_SECONDS if secure else None
        self._servers[secure] = await loop.create_server(connection, sock=listener, backlog=2048, ssl=context, ssl_handshake_timeout=handshake)


def complain(what: str, error: BaseException | None) -> None:
    """One line to the log. Never a request's or a key's text."""
    where = ""
    if error is not None and (trace := error.__traceback__) is not None:
        while trace.tb_next is not None:
            trace = trace.tb_next
        where = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
    sys.stderr.write(json.dumps({"event": what, "error": type(error).__name__, "at": where}) + "\n")
    sys.stderr.flush()


def _failed(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    complain(str(context["message"]), context.get("exception"))


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


async def serve(path: Path, listener: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_failed)
    process = Process()
    listener.settimeout(0)
    loop.add_reader(listener, process.accept, listener)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, process.stopped.set)
    await process.stopped.wait()
    path.unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="corral.preview.process")
    parser.add_argument("socket", type=Path)
    parser.add_argument(
        "--listener", type=int, required=True, help="descriptor that listens at SOCKET already, so that whoever started this need not ask when it does"
    )
    given = parser.parse_args()
    structlog.configure(processors=[structlog.processors.JSONRenderer()], logger_factory=structlog.WriteLoggerFactory(file=sys.stderr))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, DESCRIPTORS) if hard != resource.RLIM_INFINITY else DESCRIPTORS, hard))
    # Nothing that was imported is garbage ever.
    gc.freeze()
    uvloop.run(serve(given.socket, socket.socket(fileno=given.listener)))


if __name__ == "__main__":
    main()
