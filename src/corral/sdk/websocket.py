"""The client's side of a WebSocket, without I/O (RFC 6455): bytes in, messages out. No extensions.

httpx2 has WebSockets, but needs a further package for them and, blocking, two threads for each; the terminal's echo path can't afford either.
"""

from __future__ import annotations

import base64
import hashlib
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from corral.sdk.retry import Lost

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0, 1, 2, 8, 9, 10
GREATEST = 16 * 1024 * 1024
"""Bytes of one message; a longer one is taken for garbage."""


@dataclass(frozen=True, slots=True)
class Closed:
    """The server's close frame."""

    code: int
    reason: str


class WebSocket:
    """Frames of one connection. `outgoing` holds what the protocol itself has to send (pongs, the answer to a close)."""

    def __init__(self) -> None:
        self._key = base64.b64encode(os.urandom(16))
        self._buffer = bytearray()
        self._parts: list[bytes] = []
        self.outgoing = b""

    def handshake(self) -> list[tuple[bytes, bytes]]:
        """The headers of the opening request."""
        return [(b"connection", b"Upgrade"), (b"upgrade", b"websocket"), (b"sec-websocket-version", b"13"), (b"sec-websocket-key", self._key)]

    def check(self, headers: Mapping[str, str]) -> None:
        """Whether the answer belongs to our request (section 4.1)."""
        wanted = base64.b64encode(hashlib.sha1(self._key + _GUID, usedforsecurity=False).digest()).decode()
        if headers.get("sec-websocket-accept") != wanted:
            raise Lost("the server's WebSocket handshake is wrong")

    def message(self, payload: bytes) -> bytes:
        """The bytes of one binary message."""
        return frame(_BINARY, payload)

    def close(self, code: int = 1000) -> bytes:
        return frame(_CLOSE, struct.pack("!H", code))

    def take_outgoing(self) -> bytes:
        """`outgoing`, which the caller sends now."""
        outgoing, self.outgoing = self.outgoing, b""
        return outgoing

    def feed(self, data: bytes) -> Iterator[bytes | Closed]:
        """Take bytes as they came; give the payloads of whole messages, in order."""
        self._buffer += data
        while (taken := self._take()) is not None:
            final, opcode, payload = taken
            match opcode:
                case 8:
                    code = struct.unpack("!H", payload[:2])[0] if len(payload) >= 2 else 1005
                    self.outgoing += frame(_CLOSE, payload[:2])
                    yield Closed(code, payload[2:].decode(errors="replace"))
                case 9:
                    self.outgoing += frame(_PONG, payload)
                case 10:
                    pass
                case 0 | 1 | 2:
                    if (opcode == _CONTINUATION) != bool(self._parts):
                        raise Lost("the server's WebSocket messages are cut wrongly")
                    self._parts.append(payload)
                    if sum(map(len, self._parts)) > GREATEST:
                        raise Lost("the server sent a WebSocket message that does not end")
                    if final:
                        whole = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
                        self._parts = []
                        yield whole
                case _:
                    raise Lost(f"the server sent a WebSocket frame of unknown type {opcode}")

    def _take(self) -> tuple[bool, int, bytes] | None:
        """One whole frame from the buffer (section 5.2)."""
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        final, opcode, length = bool(buffer[0] & 0x80), buffer[0] & 0x0F, buffer[1] & 0x7F
        if buffer[0] & 0x70 or buffer[1] & 0x80:
            raise Lost("the server sent a WebSocket frame with an extension nobody asked for, or masked")
        start = 2
        if length >= 126:
            start = 4 if length == 126 else 10
            if len(buffer) < start:
                return None
            length = int.from_bytes(buffer[2:start], "big")
        if length > GREATEST or (opcode & 0x8 and (length > 125 or not final)):
            raise Lost("the server sent a WebSocket frame that is too long")
        if len(buffer) < start + length:
            return None
        payload = bytes(buffer[start : start + length])
        del buffer[: start + length]
        return final, opcode, payload


def frame(opcode: int, payload: bytes) -> bytes:
    """One final, masked frame."""
    length = len(payload)
    if length < 126:
        header = struct.pack("!BB", 0x80 | opcode, 0x80 | length)
    elif length < 65_536:
        header = struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, length)
    else:
        header = struct.pack("!BBQ", 0x80 | opcode, 0x80 | 127, length)
    mask = os.urandom(4)
    return header + mask + masked(payload, mask)


def masked(payload: bytes, mask: bytes) -> bytes:
    """XOR with the repeated mask; as one big number, since a loop over bytes would take a hundred times as long."""
    length = len(payload)
    key = (mask * (length // 4 + 1))[:length]
    return (int.from_bytes(payload, "little") ^ int.from_bytes(key, "little")).to_bytes(length, "little")
