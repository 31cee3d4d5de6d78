"""The first bytes of a connection, looked at and left in the socket, so that whoever gets it afterwards finds it untouched."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass

from corral.net import clienthello
from corral.net.clienthello import Hello, NotTlsError

SILENCE = 30.0
"""Seconds in which something must come. Who says nothing is never let through: he could say another name later."""
PATIENCE = 10.0
"""Seconds in which the beginning must be whole then."""
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_METHOD = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ")


@dataclass(frozen=True, slots=True)
class Tls:
    hello: Hello


@dataclass(frozen=True, slots=True)
class Http:
    """It begins as a request does."""


@dataclass(frozen=True, slots=True)
class Http2:
    """It begins as HTTP/2 without TLS does, when the client knows that the server speaks it (RFC 9113, 3.3)."""


@dataclass(frozen=True, slots=True)
class Other:
    """None of these."""


@dataclass(frozen=True, slots=True)
class Gone:
    """It ended, or took too long, before it could be told. `any`: something had come."""

    any: bool = True


async def peek(connection: socket.socket) -> Tls | Http | Http2 | Other | Gone:
    try:
        try:
            async with asyncio.timeout(SILENCE):
                await _more(connection, 0)
        except TimeoutError:
            return Gone(any=False)
        async with asyncio.timeout(PATIENCE):
            return await _tell(connection)
    except (TimeoutError, OSError):
        return Gone()
    finally:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)


async def _tell(connection: socket.socket) -> Tls | Http | Http2 | Other | Gone:
    needed = 0
    while True:
        data = await _more(connection, needed)
        if len(data) < max(needed, 1):
            return Gone(any=bool(data))
        if data[0] != clienthello.HANDSHAKE:
            # A request line begins with a method, and HTTP/2 with one that is never used.
            if _PREFACE.startswith(data[: len(_PREFACE)]):
                if len(data) >= len(_PREFACE):
                    return Http2()
                needed = len(data) + 1
                continue
            return Http() if data[0] in _METHOD else Other()
        try:
            found = clienthello.parse(data)
        except NotTlsError:
            return Other()
        if isinstance(found, Hello):
            return Tls(found)
        needed = found


async def _more(connection: socket.socket, needed: int) -> bytes:
    """At least `needed` bytes (any at all when 0), or what came until the end. The kernel wakes us when they are there, not before."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, max(needed, 1))
    loop = asyncio.get_running_loop()
    while True:
        try:
            data = connection.recv(clienthello.HELLO, socket.MSG_PEEK)
        except BlockingIOError:
            data = None
        if data is not None and (len(data) >= max(needed, 1) or _ended(connection, len(data))):
            return data
        ready: asyncio.Future[None] = loop.create_future()
        loop.add_reader(connection, lambda ready=ready: ready.done() or ready.set_result(None))
        try:
            await ready
        finally:
            loop.remove_reader(connection)


def _ended(connection: socket.socket, have: int) -> bool:
    """Whether no more will come: the other end has closed its side (TCP_INFO's state is past ESTABLISHED)."""
    state = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    established = 1
    return state != established or have >= clienthello.HELLO
