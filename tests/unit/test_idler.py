"""The freezing policy on a simulated clock: what a user would notice of it."""

from __future__ import annotations

import heapq
from collections.abc import Callable

from corral.node.idler import HASTY_QUIET, LONGEST_DOZE, QUIET, Crowd, Idler


class Simulation:
    """A clock with timers, and a box that uses CPU as told while it is awake."""

    def __init__(self) -> None:
        self.now = 0.0
        self.heap: list[tuple[float, int, Simulation.Handle]] = []
        self.count = 0
        self.frozen = False
        self.cpu = 0.0
        self.load = 0.0
        self.processes = 0
        self.requests = 0
        self.awake_seconds = 0.0
        self.crowd = Crowd(2)
        self.idler = Idler(
            self, busy=lambda: self.requests > 0, processes=lambda: self.processes, clock=lambda: self.now, call_later=self.call_later, crowd=self.crowd
        )

    class Handle:
        def __init__(self, then: Callable[[], None]) -> None:
            self.then: Callable[[], None] | None = then

        def cancel(self) -> None:
            self.then = None

    def call_later(self, seconds: float, then: Callable[[], None]) -> Handle:
        handle = self.Handle(then)
        self.count += 1
        heapq.heappush(self.heap, (self.now + seconds, self.count, handle))
        return handle

    def freeze(self) -> None:
        self.frozen = True

    def thaw(self) -> None:
        self.frozen = False

    def guest_cpu_seconds(self) -> float:
        return self.cpu

    def advance(self, to: float) -> None:
        while self.heap and self.heap[0][0] <= to:
            at, _, handle = heapq.heappop(self.heap)
            self._pass(at)
            if handle.then is not None:
                handle.then()
        self._pass(to)

    def _pass(self, to: float) -> None:
        if not self.frozen:
            self.cpu += (to - self.now) * self.load
            self.awake_seconds += to - self.now
        self.now = to


def test_a_box_with_only_the_agent_freezes_and_never_wakes_by_itself() -> None:
    sim = Simulation()
    sim.advance(QUIET + 0.01)
    assert sim.frozen
    sim.advance(3600)
    assert sim.awake_seconds < 2 * QUIET
    assert not [entry for entry in sim.heap if entry[2].then is not None]


def test_use_thaws_at_once_and_a_request_under_way_keeps_it_awake() -> None:
    sim = Simulation()
    sim.advance(10)
    sim.requests = 1
    sim.idler.touch()
    assert not sim.frozen
    sim.advance(20)
    assert not sim.frozen
    sim.requests = 0
    sim.advance(21)
    assert sim.frozen


def test_a_sleeping_process_is_woken_at_least_each_second_and_costs_little() -> None:
    sim = Simulation()
    sim.processes = 1
    sim.advance(10)
    awake_before = sim.awake_seconds
    longest, last_awake = 0.0, sim.now
    while sim.now < 110:
        sim.advance(sim.now + 0.005)
        if not sim.frozen:
            last_awake = sim.now
        longest = max(longest, sim.now - last_awake)
    assert longest <= LONGEST_DOZE + 0.01
    assert (sim.awake_seconds - awake_before) / 100 < 0.05


def test_a_working_process_is_not_frozen() -> None:
    sim = Simulation()
    sim.processes, sim.load = 1, 1.0
    sim.advance(60)
    assert sim.awake_seconds == 60


def test_a_process_that_starts_to_work_while_dozing_is_left_awake() -> None:
    sim = Simulation()
    sim.processes = 1
    sim.advance(30)
    sim.load = 1.0
    sim.advance(32)
    awake = sim.awake_seconds
    sim.advance(42)
    assert sim.awake_seconds - awake == 10


def test_stop_leaves_the_box_awake_and_undecided() -> None:
    sim = Simulation()
    sim.advance(5)
    assert sim.frozen
    sim.idler.stop()
    sim.advance(100)
    assert not sim.frozen


def test_in_a_crowd_a_box_in_which_nothing_runs_freezes_sooner() -> None:
    sim = Simulation()
    sim.crowd.awake += 1000
    sim.advance(QUIET)
    sim.idler.touch()
    sim.advance(QUIET + 2 * HASTY_QUIET)
    assert sim.frozen
    assert sim.crowd.awake == 1000


def test_in_a_crowd_a_box_in_which_something_sleeps_keeps_its_time() -> None:
    sim = Simulation()
    sim.crowd.awake += 1000
    sim.processes = 1
    sim.advance(QUIET * 0.9)
    assert not sim.frozen


def test_a_box_leaves_the_crowd_once() -> None:
    sim = Simulation()
    assert sim.crowd.awake == 1
    sim.idler.stop(thaw=False)
    sim.idler.stop(thaw=False)
    assert sim.crowd.awake == 0
