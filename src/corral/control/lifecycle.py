"""The life of a sandbox: one table. Whoever changes a state asks here first, and every change is an event.

creating ─► running ⇄ frozen          running: paused ⇄, stopped ⇄ (the disk is kept)
    │          │ ▲                     every living state ─► terminated
    ▼          ▼ │
  failed     stopped                   failed: only what never ran
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Literal

from corral.errors import InvalidState, SandboxEnded
from corral.schema.sandbox import Reason, State


class Action(StrEnum):
    """What can happen to a sandbox."""

    RUN = "run"
    FREEZE = "freeze"
    THAW = "thaw"
    PAUSE = "pause"
    RESUME = "resume"
    STOP = "stop"
    TERMINATE = "terminate"
    FAIL = "fail"


TABLE: Mapping[State, Mapping[Action, State]] = {
    State.CREATING: {Action.RUN: State.RUNNING, Action.FAIL: State.FAILED, Action.TERMINATE: State.TERMINATED},
    State.RUNNING: {Action.FREEZE: State.FROZEN, Action.PAUSE: State.PAUSED, Action.STOP: State.STOPPED, Action.TERMINATE: State.TERMINATED},
    State.FROZEN: {Action.THAW: State.RUNNING, Action.PAUSE: State.PAUSED, Action.STOP: State.STOPPED, Action.TERMINATE: State.TERMINATED},
    State.PAUSED: {Action.RESUME: State.RUNNING, Action.STOP: State.STOPPED, Action.TERMINATE: State.TERMINATED},
    State.STOPPED: {Action.RUN: State.RUNNING, Action.TERMINATE: State.TERMINATED},
    State.TERMINATED: {},
    State.FAILED: {},
}

EVENT: Mapping[Action, str] = {
    Action.RUN: "sandbox.running",
    Action.FREEZE: "sandbox.frozen",
    Action.THAW: "sandbox.thawed",
    Action.PAUSE: "sandbox.paused",
    Action.RESUME: "sandbox.resumed",
    Action.STOP: "sandbox.stopped",
    Action.TERMINATE: "sandbox.terminated",
    Action.FAIL: "sandbox.failed",
}

ENDED = frozenset(state for state, actions in TABLE.items() if not actions)
LIVING = frozenset(State) - ENDED
ACTIVE = frozenset({State.CREATING, State.RUNNING, State.FROZEN})
"""The states in which a sandbox uses cpu and memory of the node."""

_MEND: Mapping[Action, str] = {
    Action.RUN: "only a stopped sandbox can be started; a paused one is resumed",
    Action.STOP: "wait until it is running",
    Action.PAUSE: "only a running sandbox can be paused",
    Action.RESUME: "only a paused sandbox can be resumed",
}


def after(state: State, action: Action) -> State:
    """The state that follows. Raises `SandboxEnded` when there is none any more, `InvalidState` when this action leads nowhere from here."""
    if state in ENDED:
        raise SandboxEnded(f"the sandbox has ended ({state})", hint="create another one")
    following = TABLE[state].get(action)
    if following is None:
        raise InvalidState(f"a sandbox that is {state} can't {action}", hint=_MEND.get(action), details={"state": state})
    return following


def on_own_end(state: State, *, disk_kept: bool) -> Action | None:
    """What it means that a sandbox ended without being asked to. None: it was not running, so that is no news."""
    if state is State.CREATING:
        return Action.FAIL
    if Action.STOP not in TABLE[state]:
        return None
    return Action.STOP if disk_kept else Action.TERMINATE


def on_deadline(on_timeout: Literal["terminate", "stop", "pause"]) -> Action:
    """What a sandbox asked for when its time is up."""
    return {"terminate": Action.TERMINATE, "stop": Action.STOP, "pause": Action.PAUSE}[on_timeout]


def ended_by(reason: Reason, actor: str | None) -> str:
    """Who ended it: the key that asked, else the part of the system that this reason speaks of."""
    match reason:
        case Reason.TIMEOUT:
            return "timeout"
        case Reason.IDLE:
            return "idle"
        case Reason.FINISHED | Reason.OOM | Reason.PIDS | Reason.DISK | Reason.AGENT_GARBAGE:
            return actor or "guest"
        case _:
            return actor or "node"
