"""What comes out of a code context: lines cut anywhere, with gaps, garbage and lies."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.code import lines
from corral.code.lines import Nonsense, Splitter


@given(st.lists(st.binary(max_size=20).filter(lambda line: b"\n" not in line), max_size=20), st.data())
def test_lines_are_found_wherever_the_pieces_are_cut(given_lines: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(line + b"\n" for line in given_lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    splitter = Splitter(100)
    found = [line for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True) for line in splitter.feed(stream[begin:end])]
    assert [line for _, line in found] == given_lines
    ends, at = [], 100
    for line in given_lines:
        at += len(line) + 1
        ends.append(at)
    assert [end for end, _ in found] == ends


def test_after_a_gap_the_rest_of_a_line_is_none() -> None:
    splitter = Splitter(0)
    assert splitter.feed(b"one\ntw") == [(4, b"one")]
    splitter.gap(1000)
    assert splitter.feed(b"middle of ") == []
    assert splitter.feed(b"another\nthree\n") == [(1030, b"three")]


def test_a_line_without_an_end_is_refused() -> None:
    splitter = Splitter(0)
    with pytest.raises(Nonsense):
        for _ in range(lines.LINE // (1 << 20) + 1):
            splitter.feed(b"x" * (1 << 20))


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"null",
        b"[]",
        b'{"t":"shutdown"}',
        b'{"t":"stdout","id":"a","text":5,"at":0}',
        b'{"t":"stdout","id":"a","text":"\xff","at":0}',
        b'{"t":"stdout","id":"a","text":"","at":-1}',
        b'{"t":"result","id":"a","main":true,"data":{"text/plain":NaN},"omitted":{}}',
        b'{"t":"result","id":"a","main":true,"data":{"text/plain":\r"x"},"omitted":{}}',
        b'{"t":"result","id":"a","main":true,"data":{"application/json":"\xff"},"omitted":{}}',
        b'{"t":"end","id":"a","status":"fine","seconds":0}',
        b'{"t":"end","id":"' + b"a" * 65 + b'","status":"ok","seconds":0}',
        b'{"t":"error","id":"a","name":"E","value":"","traceback":' + json.dumps(["x"] * 300).encode() + b"}",
        b'{"t":"result","id":"a","main":true,"data":{"application/json":' + b"[" * 100_000 + b"]" * 100_000 + b'},"omitted":{}}',
    ],
)
def test_what_makes_no_sense_is_refused(line: bytes) -> None:
    with pytest.raises(Nonsense):
        lines.decode(line)


def test_values_stay_the_json_they_came_as() -> None:
    line = lines.decode(b'{"t":"result","id":"a","main":true,"data":{"application/json": {"b": [1, 2.50]}},"omitted":{"image/png":9000000}}')
    assert isinstance(line, lines.Result)
    assert bytes(line.data["application/json"]).strip() == b'{"b": [1, 2.50]}'
    assert lines.value(line.data["application/json"]) == {"b": [1, 2.5]}


@given(st.binary(max_size=200))
def test_no_garbage_does_harm(line: bytes) -> None:
    try:
        lines.decode(line)
    except Nonsense:
        pass
