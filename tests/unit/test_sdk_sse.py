"""Server-sent events come out whole, however the network cuts them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.errors import Unavailable
from corral.sdk.sse import GREATEST, Event, Parser

words = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=20).map(str.strip).filter(bool)
events = st.lists(st.builds(Event, name=words, data=words.map(str.encode), id=words), max_size=8)


def written(event: Event, end: str) -> bytes:
    return f"id: {event.id}{end}event: {event.name}{end}data: ".encode() + event.data + (end + end).encode()


def fed(stream: bytes, cuts: list[int]) -> list[Event]:
    parser, found = Parser(), list[Event]()
    places = sorted({cut % (len(stream) + 1) for cut in cuts} | {len(stream)})
    for start, end in zip([0, *places], places, strict=False):
        found += parser.feed(stream[start:end])
    return found


@given(events, st.lists(st.integers(0, 10_000), max_size=20), st.sampled_from(["\n", "\r\n"]))
def test_events_are_found_however_the_stream_is_cut(wanted: list[Event], cuts: list[int], end: str) -> None:
    stream = b": hello" + (end * 2).encode() + b"".join(written(event, end) for event in wanted)
    assert fed(stream, cuts) == wanted


@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=10))
def test_garbage_gives_the_same_whole_or_cut_and_never_fails(garbage: bytes, cuts: list[int]) -> None:
    assert fed(garbage, cuts) == fed(garbage, [])


def test_data_of_several_lines_is_joined_and_the_id_stays() -> None:
    stream = b"id: 7\ndata: a\ndata: b\n\n:keep-alive\n\nevent: exit\ndata:\ndata: c\nretry: 5\n\n"
    assert fed(stream, []) == [Event("message", b"a\nb", "7"), Event("exit", b"\nc", "7")]


def test_an_event_that_does_not_end_is_given_up() -> None:
    parser = Parser()
    with pytest.raises(Unavailable):
        for _ in range(GREATEST // 1_000_000 + 2):
            list(parser.feed(b"x" * 1_000_000))
