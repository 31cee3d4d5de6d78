"""When time is up: arithmetic against a plain model, the heap against a dictionary."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from corral.control import deadlines
from corral.control.deadlines import Heap
from corral.schema.sandbox import Reason

times = st.floats(0, 1e9, allow_nan=False)
spans = st.floats(0.001, 1e6, allow_nan=False)


@given(times, st.none() | times, spans)
def test_extending_never_brings_a_deadline_nearer(now: float, current: float | None, seconds: float) -> None:
    later = deadlines.extended(now, current, seconds)
    if current is None:
        assert later is None
    else:
        assert later is not None
        assert later >= current
        assert later >= now + seconds


@given(times, st.none() | times, st.none() | spans, times)
def test_a_look_says_what_is_due_or_when_to_look_again(now: float, deadline: float | None, idle_timeout: float | None, idle_since: float) -> None:
    due = deadlines.look(now, deadline=deadline, idle_timeout=idle_timeout, idle_since=idle_since)
    if deadline is not None and deadline <= now:
        assert due.reason is Reason.TIMEOUT
    elif idle_timeout is not None and idle_since + idle_timeout <= now:
        assert due.reason is Reason.IDLE
    else:
        assert due.reason is None
        if deadline is None and idle_timeout is None:
            assert due.at is None
        else:
            assert due.at is not None
            assert due.at > now


class HeapAgainstDictionary(RuleBasedStateMachine):
    """Whatever is set, the heap says what a dictionary would."""

    def __init__(self) -> None:
        super().__init__()
        self.heap = Heap()
        self.model: dict[str, float] = {}

    @rule(id=st.sampled_from("abcdef"), at=st.none() | st.integers(0, 20).map(float))
    def set(self, id: str, at: float | None) -> None:
        self.heap.set(id, at)
        if at is None:
            self.model.pop(id, None)
        else:
            self.model[id] = at

    @rule()
    def next(self) -> None:
        assert self.heap.next() == min(self.model.values(), default=None)

    @rule(now=st.integers(0, 20).map(float))
    def due(self, now: float) -> None:
        due = self.heap.due(now)
        assert sorted(due) == sorted(id for id, at in self.model.items() if at <= now)
        assert [self.model[id] for id in due] == sorted(self.model[id] for id in due)
        for id in due:
            del self.model[id]


TestHeap = HeapAgainstDictionary.TestCase


def test_a_heap_that_is_set_again_and_again_stays_small() -> None:
    heap = Heap()
    for at in range(10_000):
        heap.set("a", float(at))
    assert len(heap._heap) < 100  # pyright: ignore[reportPrivateUsage]
