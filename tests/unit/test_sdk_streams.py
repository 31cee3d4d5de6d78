"""Offsets: nothing is taken twice, nothing is missed without being counted, unacknowledged input is sent again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.schema.process import Stream
from corral.sdk import channel
from corral.sdk.channel import Kind, Ledger, Order
from corral.sdk.output import Seen, Unread
from corral.sdk.retry import Lost
from corral.sdk.text import Decoder

pieces = st.lists(st.binary(max_size=12), max_size=12)


@given(st.binary(max_size=200), st.lists(st.tuples(st.integers(0, 200), st.integers(0, 60)), max_size=30))
def test_overlapping_pieces_give_each_byte_once(whole: bytes, spans: list[tuple[int, int]]) -> None:
    seen, got = Seen(), bytearray()
    for wanted, length in spans:
        start = min(wanted, len(got))  # a stream that resumes may repeat, and leaves no gap
        chunk = seen.take(Stream.STDOUT, start, whole[start : start + length])
        if chunk is not None:
            assert chunk.offset == len(got)
            got += chunk.data
    assert whole.startswith(bytes(got))
    assert seen.dropped == 0


def test_a_gap_is_counted() -> None:
    seen = Seen(stdout=10)
    assert seen.take(Stream.STDOUT, 25, b"abc") is not None
    assert (seen.dropped, seen.query()) == (15, {"stdout": 28, "stderr": 0})


@given(pieces, st.integers(0, 200))
def test_the_ledger_sends_again_exactly_what_was_not_acknowledged(written: list[bytes], acked: int) -> None:
    ledger, whole = Ledger(), b"".join(written)
    for piece in written:
        ledger.add(piece)
    acked = min(acked, len(whole))
    ledger.ack(acked)
    ledger.closed = True
    *data, end = ledger.again()
    server, at = bytearray(whole[:acked]), acked
    for message in data:
        offset = int.from_bytes(message[1:9], "little")
        assert message[0] == Order.STDIN
        assert offset <= at
        new = message[9:][at - offset :]
        server += new
        at += len(new)
    assert bytes(server) == whole
    assert end == channel.eof(len(whole))
    assert ledger.pending == len(whole) - acked


def test_an_acknowledgement_of_what_was_never_sent_is_refused() -> None:
    with pytest.raises(Lost):
        Ledger().ack(1)


def test_messages_keep_their_form() -> None:
    assert channel.resize(24, 80) == b"\x02" + bytes(8) + b"\x18\x00\x50\x00"
    assert channel.signal(9) == b"\x03" + bytes(8) + b"\x09"
    message = channel.parse(b"\x02" + (5).to_bytes(8, "little") + b"err")
    assert (message.kind, message.offset, message.data) == (Kind.STDERR, 5, b"err")


@given(st.binary(max_size=30))
def test_any_message_is_parsed_or_refused(raw: bytes) -> None:
    try:
        channel.parse(raw)
    except Lost:
        pass


@given(st.lists(st.binary(max_size=6), max_size=20))
def test_text_is_the_same_however_its_bytes_are_cut(parts: list[bytes]) -> None:
    decoder = Decoder()
    assert "".join(decoder.feed(part) for part in parts) + decoder.end() == b"".join(parts).decode(errors="replace")


@given(st.text(max_size=30), st.integers(1, 4))
def test_whole_characters_are_never_torn(text: str, step: int) -> None:
    raw, decoder = text.encode("utf-8", "surrogatepass"), Decoder()
    given_out = [decoder.feed(raw[start : start + step]) for start in range(0, len(raw), step)]
    if "\ufffd" not in raw.decode(errors="replace"):
        assert all("\ufffd" not in piece for piece in given_out)


def test_unread_output_is_bounded() -> None:
    unread, piece = Unread(), bytes(1024 * 1024)
    assert [unread.put(piece) for _ in range(6)] == [True] * 4 + [False] * 2
    unread.take()
    assert unread.put(piece)
