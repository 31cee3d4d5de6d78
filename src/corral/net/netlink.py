"""Netlink: attributes packed and read, requests sent in one write, their acknowledgements collected.

Sources: Linux include/uapi/linux/netlink.h. The kernel does a request while it is being sent and its answers are there when `send` returns, so nothing here waits.
Numbers are in the machine's byte order, but for those of nfnetlink's attributes.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

REQUEST, MULTI, ACK, DUMP, CREATE, EXCLUSIVE, REPLACE, APPEND = 0x1, 0x2, 0x4, 0x300, 0x400, 0x200, 0x100, 0x800
ERROR, DONE = 2, 3
NESTED = 0x8000
RECEIVE = 1 << 18
"""Bytes of answers read at once."""
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
BUFFER = 4 << 20
PATIENCE = 5.0
"""Seconds after which an answer that ought to be there is held not to come."""

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")


def attribute(kind: int, data: bytes) -> bytes:
    return _ATTRIBUTE.pack(4 + len(data), kind) + data + bytes(-len(data) % 4)


def nest(kind: int, *parts: bytes) -> bytes:
    return attribute(kind | NESTED, b"".join(parts))


def text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Each attribute's kind, without its flags, and its data. Stops at what is cut off."""
    at = 0
    while at + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < 4 or at + length > len(data):
            return
        yield kind & 0x3FFF, data[at + 4 : at + length]
        at += length + 3 & ~3


def messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Each message's type, sequence number and body."""
    at = 0
    while at + 16 <= len(data):
        length, kind, _, sequence, _ = _HEADER.unpack_from(data, at)
        if length < 16 or at + length > len(data):
            return
        yield kind, sequence, data[at + 16 : at + length]
        at += length + 3 & ~3


@dataclass(frozen=True)
class Message:
    """A request. `flags` without REQUEST; those without ACK are answered only when they fail."""

    kind: int
    body: bytes
    flags: int = ACK


class Netlink:
    """A connection to one of the kernel's parts, in the network namespace in which the socket was made. May be used from any thread."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._turn = threading.Lock()
        self._sequence = 1
        connection.settimeout(PATIENCE)
        for forced, usual in ((SO_SNDBUFFORCE, socket.SO_SNDBUF), (SO_RCVBUFFORCE, socket.SO_RCVBUF)):
            try:
                connection.setsockopt(socket.SOL_SOCKET, forced, BUFFER)
            except PermissionError:
                connection.setsockopt(socket.SOL_SOCKET, usual, BUFFER)

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def request(self, requests: Sequence[Message]) -> None:
        """Do all of these, in order and in one write. Raises `OSError` for the first that failed; those after it were tried nevertheless."""
        with self._turn:
            first = self._send(requests)
            waiting = {first + offset for offset, request in enumerate(requests) if request.flags & ACK}
            failed: dict[int, int] = {}
            while waiting:
                for kind, sequence, body in messages(self._socket.recv(RECEIVE)):
                    if kind != ERROR or not first <= sequence < first + len(requests):
                        continue
                    if number := -struct.unpack_from("=i", body)[0]:
                        failed[sequence] = number
                    if sequence not in waiting:
                        # The begin of a batch was refused, and all that is in it with it.
                        waiting.clear()
                    waiting.discard(sequence)
            if failed:
                self._drain()
                number = failed[min(failed)]
                raise OSError(number, os.strerror(number))

    def dump(self, request: Message) -> list[bytes]:
        """The bodies of all answers to a request for a list. Read again when the list has changed under it."""
        found: list[bytes] = []
        with self._turn:
            first = self._send([Message(request.kind, request.body, DUMP)])
            while True:
                for kind, sequence, body in messages(self._socket.recv(RECEIVE)):
                    if sequence != first:
                        continue
                    if kind == ERROR:
                        number = -struct.unpack_from("=i", body)[0]
                        raise OSError(number, os.strerror(number))
                    if kind == DONE:
                        return found
                    found.append(body)

    def _send(self, requests: Sequence[Message]) -> int:
        """Send in one write; returns the first one's sequence number, from which the others follow."""
        first = self._sequence
        # They start again long before they would be too large.
        self._sequence = (first + len(requests)) % (1 << 31)
        parts = [
            _HEADER.pack(16 + len(request.body), request.kind, REQUEST | request.flags, first + offset, 0) + request.body + bytes(-len(request.body) % 4)
            for offset, request in enumerate(requests)
        ]
        self._socket.send(b"".join(parts))
        return first

    def _drain(self) -> None:
        """Throw away what else has been answered to a failed write."""
        self._socket.settimeout(0)
        try:
            while self._socket.recv(RECEIVE):
                pass
        except BlockingIOError:
            pass
        finally:
            self._socket.settimeout(PATIENCE)


def is_missing(error: OSError) -> bool:
    """Whether it says that what was to be removed is not there."""
    return error.errno in (errno.ENOENT, errno.ENODEV, errno.ESRCH)
