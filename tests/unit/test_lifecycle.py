"""The table of a sandbox's life, walked at random; and what a starting server makes of what it finds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from corral.control import lifecycle
from corral.control.lifecycle import Action
from corral.control.recovery import fate
from corral.errors import InvalidState, SandboxEnded
from corral.schema.sandbox import Reason, State
from harness.records import record


class Life(RuleBasedStateMachine):
    """Anything that may happen to a sandbox, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.state = State.CREATING
        self.ran = False

    @precondition(lambda self: self.state in lifecycle.LIVING)
    @rule(data=st.data())
    def something_allowed_happens(self, data: st.DataObject) -> None:
        action = data.draw(st.sampled_from(sorted(lifecycle.TABLE[self.state])))
        self.state = lifecycle.after(self.state, action)
        self.ran = self.ran or self.state is State.RUNNING

    @rule(action=st.sampled_from(Action))
    def something_forbidden_changes_nothing(self, action: Action) -> None:
        if action in lifecycle.TABLE[self.state]:
            return
        with pytest.raises(SandboxEnded if self.state in lifecycle.ENDED else InvalidState):
            lifecycle.after(self.state, action)

    @precondition(lambda self: self.state in lifecycle.LIVING)
    @rule(disk_kept=st.booleans())
    def it_ends_by_itself(self, disk_kept: bool) -> None:
        action = lifecycle.on_own_end(self.state, disk_kept=disk_kept)
        if action is not None:
            self.state = lifecycle.after(self.state, action)

    @precondition(lambda self: self.state in lifecycle.LIVING)
    @rule(alive=st.booleans(), saved=st.booleans())
    def the_server_starts_anew(self, alive: bool, saved: bool) -> None:
        decided = fate(record(self.state), alive=alive, paused=saved and not alive, booted_at=0.0)
        if decided is not None:
            self.state = lifecycle.after(self.state, decided.action)
            self.ran = self.ran or self.state is State.RUNNING

    @invariant()
    def only_what_never_ran_has_failed(self) -> None:
        assert not (self.ran and self.state is State.FAILED)


TestLife = Life.TestCase


def test_every_living_state_can_be_ended() -> None:
    assert all(Action.TERMINATE in lifecycle.TABLE[state] for state in lifecycle.LIVING)


def test_every_state_can_be_reached() -> None:
    reached = {State.CREATING}
    while more := {after for state in reached for after in lifecycle.TABLE[state].values()} - reached:
        reached |= more
    assert reached == set(State)


def test_every_action_is_an_event() -> None:
    assert set(lifecycle.EVENT) == set(Action)


@given(st.sampled_from(Reason), st.none() | st.just("ke-aaaaaaaaaaaaaaaa"))
def test_who_asked_is_the_key_unless_time_was_up(reason: Reason, actor: str | None) -> None:
    by = lifecycle.ended_by(reason, actor)
    if reason is Reason.TIMEOUT or reason is Reason.IDLE:
        assert by == reason
    else:
        assert by == actor or (actor is None and by in ("guest", "node"))


@pytest.mark.parametrize(("booted_at", "reason"), [(50.0, Reason.CRASHED), (150.0, Reason.NODE_LOST)])
def test_a_sandbox_that_is_gone_when_the_server_starts_is_stopped_and_says_why(booted_at: float, reason: Reason) -> None:
    decided = fate(record(started_at=100.0), alive=False, paused=False, booted_at=booted_at)
    assert decided is not None
    assert (decided.action, decided.reason) == (Action.STOP, reason)


def test_a_sandbox_that_was_being_created_runs_if_it_lives_and_has_failed_if_not() -> None:
    alive, dead = (fate(record(State.CREATING), alive=alive, paused=False, booted_at=0.0) for alive in (True, False))
    assert alive is not None
    assert dead is not None
    assert (alive.action, dead.action) == (Action.RUN, Action.FAIL)


@pytest.mark.parametrize("state", [State.RUNNING, State.PAUSED])
def test_a_sandbox_whose_memory_is_saved_is_paused_and_one_without_it_is_not(state: State) -> None:
    saved = fate(record(state), alive=False, paused=True, booted_at=0.0)
    assert state is State.PAUSED if saved is None else saved.action is Action.PAUSE
    lost = fate(record(state), alive=False, paused=False, booted_at=0.0)
    assert lost is not None
    assert lost.action is Action.STOP
