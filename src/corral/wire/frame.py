"""One frame of the wire: sixteen bytes of header and a payload, in one packet. See docs/wire.md."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

MAX_FRAME = 262_144
"""Bytes of the largest frame, header included."""
HEADER_SIZE = 16
MAX_PAYLOAD = MAX_FRAME - HEADER_SIZE
MAX_CHANNEL = 2**31 - 1
MAX_OFFSET = 2**63 - 1
MIN_WINDOW = 4096
MAX_WINDOW = 8 << 20
DEFAULT_WINDOW = 1 << 20

STREAMS = 3
"""Streams of a channel: 0 towards the guest, 1 and 2 from it."""

_HEADER = struct.Struct("<BBHIQ")
_WINDOW = struct.Struct("<I")
_FIN = 1


class ProtocolError(Exception):
    """The peer sent something that the wire does not allow."""


class Type(IntEnum):
    REQUEST = 1
    RESPONSE = 2
    EVENT = 3
    DATA = 4
    ACK = 5


class Frame(NamedTuple):
    """A decoded frame. `payload` is a view into the packet: use it before the packet's buffer is used again."""

    type: Type
    channel: int
    stream: int
    offset: int
    fin: bool
    window: int
    payload: memoryview


_TYPES = {int(kind): kind for kind in Type}


def decode(packet: memoryview) -> Frame:
    """The frame in a packet; raises `ProtocolError` for anything but a well-formed one."""
    size = len(packet)
    if size < HEADER_SIZE:
        raise ProtocolError(f"frame of {size} bytes is shorter than its header")
    if size > MAX_FRAME:
        raise ProtocolError(f"frame is longer than {MAX_FRAME} bytes")
    number, flags, stream, channel, offset = _HEADER.unpack_from(packet)
    kind = _TYPES.get(number)
    payload = packet[HEADER_SIZE:]
    match kind:
        case Type.DATA:
            _check_stream(stream, channel, offset + len(payload))
            if flags & ~_FIN:
                raise ProtocolError(f"unknown flags {flags:#x}")
            return Frame(kind, channel, stream, offset, flags == _FIN, 0, payload)
        case Type.ACK:
            _check_stream(stream, channel, offset)
            if flags or len(payload) != _WINDOW.size:
                raise ProtocolError("malformed ack")
            (window,) = _WINDOW.unpack(payload)
            if window > MAX_WINDOW:
                raise ProtocolError(f"window of {window} bytes is larger than {MAX_WINDOW}")
            return Frame(kind, channel, stream, offset, fin=False, window=window, payload=payload)
        case Type.REQUEST | Type.RESPONSE | Type.EVENT:
            if flags or stream or offset or not payload:
                raise ProtocolError("malformed message frame")
            return Frame(kind, channel, 0, 0, fin=False, window=0, payload=payload)
        case None:
            raise ProtocolError(f"unknown frame type {number}")


def _check_stream(stream: int, channel: int, end: int) -> None:
    if stream >= STREAMS:
        raise ProtocolError(f"unknown stream {stream}")
    if not 1 <= channel <= MAX_CHANNEL:
        raise ProtocolError(f"impossible channel {channel}")
    if end > MAX_OFFSET:
        raise ProtocolError("offset is too large")


def data_header(channel: int, stream: int, offset: int, *, fin: bool) -> bytes:
    """The header of a data frame; the payload follows it in the same packet."""
    return _HEADER.pack(Type.DATA, _FIN if fin else 0, stream, channel, offset)


def ack(channel: int, stream: int, offset: int, window: int) -> bytes:
    """A whole ack frame: everything below `offset` is kept, and the sender may have `window` bytes beyond it under way."""
    return _HEADER.pack(Type.ACK, 0, stream, channel, offset) + _WINDOW.pack(window)


def message(kind: Type, number: int, payload: bytes) -> bytes:
    """A whole request, response or event frame. `number` is the request's number or the event's channel."""
    if len(payload) > MAX_PAYLOAD:
        raise ValueError(f"message of {len(payload)} bytes does not fit into a frame")
    return _HEADER.pack(kind, 0, 0, number, 0) + payload
