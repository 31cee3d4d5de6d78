"""Messages: requests travel as docs/wire.md says; of what a guest says only what has the right form gets in."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.wire import messages, requests
from corral.wire.frame import ProtocolError

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(["event", "code", "stdout", "ok", "path", "entry", "x"]), inner, max_size=5),
    max_leaves=20,
)
KINDS = [messages.Started, messages.HasEntry, messages.Listing, messages.Matches, messages.Greeting, messages.UsageNow, messages.Record]


@given(st.one_of(st.binary(max_size=200), anything.map(lambda value: json.dumps(value).encode())), st.sampled_from(KINDS))
def test_anything_is_a_message_or_a_protocol_error(payload: bytes, kind: type[Any]) -> None:
    for decode in (messages.event, messages.verdict, messages.record, lambda payload: messages.answer(payload, kind)):
        try:
            decode(payload)
        except ProtocolError:
            pass


EXIT = {"event": "exit", "code": 0, "signal": None, "core": False, "stdout": 1, "stderr": 2, "seconds": 0.5, "cpu": 0.1}


def test_events_are_what_they_say() -> None:
    assert messages.event(json.dumps(EXIT).encode()) == messages.Exit(0, None, 1, 2, 0.5, core=False, cpu=0.1)
    assert messages.event(b'{"event":"closed","files":3,"bytes":4,"later":[1]}') == messages.Closed(files=3, bytes=4)
    assert messages.event(b'{"event":"port","port":8000,"open":true,"process":"python3"}') == messages.Port(8000, open=True, process="python3")


@pytest.mark.parametrize(
    "change",
    [
        {"event": "unheard"},
        {"code": 256},
        {"code": -1},
        {"signal": 0},
        {"signal": 65},
        {"stdout": -1},
        {"stdout": 1 << 63},
        {"stdout": 1.5},
        {"stdout": True},
        {"seconds": -1},
        {"seconds": 1e300},
        {"seconds": "1"},
        {"core": None},
    ],
)
def test_events_out_of_bounds_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        messages.event(json.dumps({**EXIT, **change}).encode())


def test_depth_and_length_are_bounded() -> None:
    with pytest.raises(ProtocolError):
        messages.event(b'{"event":"closed","x":' + b"[" * 200_000 + b"]" * 200_000 + b"}")
    paths = json.dumps({"paths": [""] * (messages.PATHS + 1), "more": False}).encode()
    with pytest.raises(ProtocolError):
        messages.answer(paths, messages.Matches)


@given(st.binary(max_size=50))
def test_bytes_travel_as_base64(raw: bytes) -> None:
    import base64

    request = json.loads(requests.encode(requests.Move(source=raw, target=b"/x", overwrite=True)))
    assert request == {"op": "move", "from": base64.b64encode(raw).decode(), "to": "L3g=", "overwrite": True}


def test_a_start_has_every_field() -> None:
    start = requests.Start(channel=3, id="pr-x", argv=[b"a"], env=[b"K=V"], cwd=None, user=None, pty=requests.Size(24, 80), stdin=True)
    assert json.loads(requests.encode(start)) == {
        "op": "start",
        "channel": 3,
        "id": "pr-x",
        "argv": ["YQ=="],
        "env": ["Sz1W"],
        "cwd": None,
        "user": None,
        "pty": {"rows": 24, "cols": 80},
        "stdin": True,
    }
