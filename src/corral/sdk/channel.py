"""Messages of the attach WebSocket, without I/O: what they look like, and which bytes of standard input the server has not yet taken.

Server to client: u8 kind, u64 LE offset, bytes. Client to server: the same. docs/api.md, `WS …/attach`.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass
from enum import IntEnum

from corral.sdk.retry import Lost

_HEADER = struct.Struct("<BQ")


class Kind(IntEnum):
    """What the server says."""

    STDOUT = 1
    STDERR = 2
    EXIT = 3
    STDIN_ACK = 4
    DROPPED = 5


class Order(IntEnum):
    """What the client says."""

    STDIN = 0
    EOF = 1
    RESIZE = 2
    SIGNAL = 3


@dataclass(frozen=True, slots=True)
class Message:
    kind: Kind
    offset: int
    data: bytes


def parse(message: bytes) -> Message:
    try:
        kind, offset = _HEADER.unpack_from(message)
        return Message(Kind(kind), offset, message[_HEADER.size :])
    except (struct.error, ValueError):
        raise Lost(f"the server sent a message that is none: {message[:16].hex()}") from None


def stdin(offset: int, data: bytes) -> bytes:
    return _HEADER.pack(Order.STDIN, offset) + data


def eof(offset: int) -> bytes:
    return _HEADER.pack(Order.EOF, offset)


def resize(rows: int, cols: int) -> bytes:
    return _HEADER.pack(Order.RESIZE, 0) + struct.pack("<HH", rows, cols)


def signal(number: int) -> bytes:
    return _HEADER.pack(Order.SIGNAL, 0) + bytes([number])


class Ledger:
    """Standard input that was written and not yet acknowledged, kept to be sent again."""

    def __init__(self, offset: int = 0) -> None:
        self.acked = offset
        self.end = offset
        self.closed = False
        self._kept: deque[tuple[int, bytes]] = deque()

    @property
    def pending(self) -> int:
        """Bytes not yet acknowledged."""
        return self.end - self.acked

    def add(self, data: bytes) -> bytes:
        """Keep `data`; returns the message that carries it."""
        message = stdin(self.end, data)
        self._kept.append((self.end, data))
        self.end += len(data)
        return message

    def ack(self, offset: int) -> None:
        """The server has everything below `offset`."""
        if offset > self.end:
            raise Lost(f"the server acknowledged {offset} bytes of standard input, {self.end} were sent")
        self.acked = max(self.acked, offset)
        while self._kept and self._kept[0][0] + len(self._kept[0][1]) <= self.acked:
            self._kept.popleft()

    def again(self) -> list[bytes]:
        """What a new connection has to say: the unacknowledged bytes, then the end."""
        messages = [stdin(offset, data) for offset, data in self._kept]
        return [*messages, eof(self.end)] if self.closed else messages
