"""The sentry's answers, cut out of a byte stream that a hostile sentry may have written."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.node.urpc import Answers, UrpcError

values = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=4)
answers = st.lists(st.dictionaries(st.text(), values, max_size=3), max_size=3)


@given(answers, st.booleans(), st.sampled_from([b"", b"\n", b"  "]), st.lists(st.integers(1, 40), min_size=1))
def test_answers_are_found_however_the_stream_is_cut(sent: list[dict[str, object]], ascii: bool, between: bytes, sizes: list[int]) -> None:
    stream = b"".join(json.dumps(answer, ensure_ascii=ascii).encode() + between for answer in sent)
    reader, got = Answers(), []
    for size in itertools.cycle(sizes):
        if not stream:
            break
        got += reader.feed(stream[:size])
        stream = stream[size:]
    assert got == sent


@given(st.binary(max_size=300))
def test_any_bytes_give_answers_or_a_refusal(junk: bytes) -> None:
    try:
        for answer in Answers().feed(junk):
            assert isinstance(answer, dict)
    except UrpcError:
        pass


def test_an_answer_without_end_is_refused() -> None:
    reader = Answers(limit=1000)
    with pytest.raises(UrpcError, match="longer than 1000 bytes"):
        for _ in range(100):
            reader.feed(b'{"a":"' + b"x" * 100)


def test_depth_is_bounded() -> None:
    with pytest.raises(UrpcError, match="nested too deeply"):
        Answers().feed(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}")


def test_what_is_no_object_is_refused() -> None:
    with pytest.raises(UrpcError, match="not an object"):
        Answers().feed(b'[{"success":true}]')
