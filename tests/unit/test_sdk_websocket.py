"""Our half of a WebSocket against another implementation of the other half."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.frames import Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol

from corral.sdk.retry import Lost
from corral.sdk.websocket import Closed, WebSocket, frame, masked


def opened() -> tuple[WebSocket, ServerProtocol]:
    client, server = WebSocket(), ServerProtocol()
    head = b"GET /x HTTP/1.1\r\nhost: x\r\n" + b"".join(name + b": " + value + b"\r\n" for name, value in client.handshake()) + b"\r\n"
    server.receive_data(head)
    (request,) = server.events_received()
    assert isinstance(request, Request)
    response = server.accept(request)
    assert response.status_code == 101
    client.check({name.lower(): value for name, value in response.headers.raw_items()})
    server.send_response(response)
    server.data_to_send()
    return client, server


sizes = st.one_of(st.integers(0, 300), st.sampled_from([125, 126, 127, 65_535, 65_536, 70_000]))


@given(st.lists(sizes, max_size=5))
def test_what_we_send_is_read_by_the_server(lengths: list[int]) -> None:
    client, server = opened()
    for number, length in enumerate(lengths):
        server.receive_data(client.message(bytes([number]) * length))
    assert [event.data for event in server.events_received()] == [bytes([number]) * length for number, length in enumerate(lengths)]


@given(st.lists(st.tuples(sizes, st.booleans()), max_size=5), st.integers(1, 300))
@settings(deadline=None)
def test_what_the_server_sends_is_read_by_us(messages: list[tuple[int, bool]], parts: int) -> None:
    client, server = opened()
    wanted = [bytes([number]) * length for number, (length, _) in enumerate(messages)]
    for data, (_, in_parts) in zip(wanted, messages, strict=True):
        if in_parts:
            server.send_binary(data[: len(data) // 2], fin=False)
            server.send_continuation(data[len(data) // 2 :], fin=True)
        else:
            server.send_binary(data)
    stream = b"".join(server.data_to_send())
    step = len(stream) // parts + 1
    found = [message for start in range(0, len(stream), step) for message in client.feed(stream[start : start + step])]
    assert found == wanted


def test_a_ping_is_answered_and_a_close_too() -> None:
    client, server = opened()
    server.send_ping(b"are you there")
    server.send_close(1001, "restart")
    assert list(client.feed(b"".join(server.data_to_send()))) == [Closed(1001, "restart")]
    server.receive_data(client.take_outgoing())
    assert client.outgoing == b""
    pong, close = server.events_received()
    assert (pong.opcode, pong.data, close.opcode) == (Opcode.PONG, b"are you there", Opcode.CLOSE)


@pytest.mark.parametrize(
    "raw", [b"\xc2\x00", b"\x82\x80abcd", b"\x83\x00", b"\x80\x01x", b"\x82\x7f" + b"\xff" * 8, b"\x09\x00"], ids=lambda raw: raw[:3].hex()
)
def test_frames_that_must_not_be_end_the_connection(raw: bytes) -> None:
    with pytest.raises(Lost):
        list(WebSocket().feed(raw))


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    try:
        list(WebSocket().feed(raw))
    except Lost:
        pass


def test_a_wrong_handshake_is_refused() -> None:
    with pytest.raises(Lost):
        WebSocket().check({"sec-websocket-accept": "nonsense"})


@given(st.binary(max_size=100), st.binary(min_size=4, max_size=4))
def test_masking_twice_gives_the_same(payload: bytes, mask: bytes) -> None:
    assert masked(masked(payload, mask), mask) == payload
    assert len(frame(2, payload)) == len(payload) + 6
