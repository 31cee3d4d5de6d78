"""Frames: what is encoded is decoded, and nothing else is."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.wire import frame
from corral.wire.frame import Frame, ProtocolError, Type

channels = st.integers(1, frame.MAX_CHANNEL)
streams = st.integers(0, frame.STREAMS - 1)


@given(channels, streams, st.integers(0, 2**62), st.binary(max_size=300), st.booleans())
def test_data_comes_back(channel: int, stream: int, offset: int, payload: bytes, fin: bool) -> None:
    packet = frame.data_header(channel, stream, offset, fin=fin) + payload
    assert frame.decode(memoryview(packet)) == Frame(Type.DATA, channel, stream, offset, fin, 0, memoryview(payload))


@given(channels, streams, st.integers(0, frame.MAX_OFFSET), st.integers(0, frame.MAX_WINDOW))
def test_acks_come_back(channel: int, stream: int, offset: int, window: int) -> None:
    decoded = frame.decode(memoryview(frame.ack(channel, stream, offset, window)))
    assert (decoded.type, decoded.channel, decoded.stream, decoded.offset, decoded.window) == (Type.ACK, channel, stream, offset, window)


@given(st.sampled_from([Type.REQUEST, Type.RESPONSE, Type.EVENT]), st.integers(0, 2**32 - 1), st.binary(min_size=1, max_size=300))
def test_messages_come_back(kind: Type, number: int, payload: bytes) -> None:
    decoded = frame.decode(memoryview(frame.message(kind, number, payload)))
    assert (decoded.type, decoded.channel, bytes(decoded.payload)) == (kind, number, payload)


@given(st.binary(max_size=64))
def test_garbage_is_a_frame_or_a_protocol_error(packet: bytes) -> None:
    try:
        decoded = frame.decode(memoryview(packet))
    except ProtocolError:
        return
    assert decoded.type in Type
    assert decoded.stream < frame.STREAMS
    assert bytes(decoded.payload) == packet[frame.HEADER_SIZE :]


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\x04" * 15,
        struct.pack("<BBHIQ", 0, 0, 0, 1, 0),
        struct.pack("<BBHIQ", 6, 0, 0, 1, 0),
        struct.pack("<BBHIQ", 4, 2, 1, 1, 0) + b"x",
        struct.pack("<BBHIQ", 4, 0, 3, 1, 0) + b"x",
        struct.pack("<BBHIQ", 4, 0, 1, 0, 0) + b"x",
        struct.pack("<BBHIQ", 4, 0, 1, 2**31, 0) + b"x",
        struct.pack("<BBHIQ", 4, 0, 1, 1, 2**63 - 1) + b"x",
        struct.pack("<BBHIQ", 5, 0, 1, 1, 0) + b"xyz",
        struct.pack("<BBHIQ", 5, 1, 1, 1, 0) + b"\0\0\0\0",
        struct.pack("<BBHIQ", 5, 0, 1, 1, 0) + b"\xff\xff\xff\xff",
        struct.pack("<BBHIQ", 2, 0, 1, 1, 0) + b"{}",
        struct.pack("<BBHIQ", 2, 0, 0, 1, 9) + b"{}",
        struct.pack("<BBHIQ", 3, 0, 0, 1, 0),
        struct.pack("<BBHIQ", 4, 0, 1, 1, 0) + bytes(frame.MAX_FRAME),
    ],
)
def test_what_the_wire_forbids_is_refused(packet: bytes) -> None:
    with pytest.raises(ProtocolError):
        frame.decode(memoryview(packet))


def test_a_message_that_does_not_fit_is_refused() -> None:
    frame.message(Type.REQUEST, 1, bytes(frame.MAX_PAYLOAD))
    with pytest.raises(ValueError, match="does not fit"):
        frame.message(Type.REQUEST, 1, bytes(frame.MAX_PAYLOAD + 1))
