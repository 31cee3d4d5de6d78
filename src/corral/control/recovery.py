"""What a server that starts makes of the sandboxes it finds: those it has rows of, and those the node says are alive."""

from __future__ import annotations

from dataclasses import dataclass

from corral.control.lifecycle import Action
from corral.control.record import Record
from corral.schema.sandbox import Reason, State


@dataclass(frozen=True)
class Fate:
    """What happens to a row; `reason` and `detail` when it stops."""

    action: Action
    reason: Reason | None = None
    detail: str | None = None


def fate(record: Record, *, alive: bool, paused: bool, booted_at: float) -> Fate | None:
    """None: it is as the row says. `paused`: the node has its memory, which is never so for one that is alive. `booted_at` is when the machine was started."""
    match record.state:
        case State.CREATING:
            if alive:
                return Fate(Action.RUN)
            return Fate(Action.FAIL, Reason.NODE_LOST, "the server ended while it was being created")
        case State.RUNNING | State.FROZEN:
            if alive:
                return None
            if paused:
                return Fate(Action.PAUSE, Reason.REQUESTED, "the server ended while it was being paused")
            if record.started_at is not None and record.started_at < booted_at:
                return Fate(Action.STOP, Reason.NODE_LOST, "the machine was started anew")
            return Fate(Action.STOP, Reason.CRASHED, "it ended while no server watched it")
        case State.STOPPED:
            # Its start was answered to nobody, or its end was not: what runs is what counts.
            return Fate(Action.RUN) if alive else None
        case State.PAUSED:
            if alive:
                return Fate(Action.RESUME)
            return None if paused else Fate(Action.STOP, Reason.NODE_LOST, "its memory is gone")
        case State.TERMINATED | State.FAILED:
            return None
