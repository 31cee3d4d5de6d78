"""What is known of one sandbox: what it was asked, what it acknowledged, what was done to it. From this follows what it may say."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import assert_never

from corral.aio import Sandbox
from corral.chaos.script import Script
from corral.schema.process import Stream
from corral.schema.sandbox import Reason


class Blow(StrEnum):
    """What the gremlin does to a sandbox."""

    SENTRY = "sentry"
    GOFER = "gofer"
    AGENT = "agent"
    ORPHANED = "orphaned"
    """Server and holder fell so close together that nobody had its sockets: then its agent ends it, unless the next server does."""


LATE = 60.0
"""Seconds after which a request whose connection was cut has taken effect or never will."""


@dataclass
class Printed:
    """A process with known output. `most`: offsets up to which a reader was given bytes; they must be there for the next one."""

    id: str
    script: Script
    most: dict[Stream, int] = field(default_factory=lambda: dict.fromkeys(Stream, 0))
    life: int = 0
    """In which life of its sandbox it was started."""
    ended: bool = False
    """A reader has seen its end, by itself."""


@dataclass
class Known:
    """One sandbox. Its client alone changes it; the gremlin only adds blows."""

    sandbox: Sandbox
    step: str
    """The step that created it."""
    home: str
    """Directory of its user."""
    life: int = 0
    """How often it was stopped."""
    stopped: bool = False
    reason: Reason | None = None
    """Of its last stop, as seen."""
    blows: list[tuple[float, Blow]] = field(default_factory=list[tuple[float, Blow]])
    """What was done to it since it was last seen alive, and when."""
    stop_asked: float | None = None
    """When it was last asked to stop; None once that can't matter any more."""
    pause_asked: bool = False
    """It may be paused: by an answered call, or by one whose answer did not come. Its next use resumes it."""
    doomed: bool = False
    """Asked to be deleted."""
    files: dict[str, set[str]] = field(default_factory=dict[str, set[str]])
    """Digests that each file may have: one when the last write was acknowledged, more when one was left unanswered."""
    printed: list[Printed] = field(default_factory=list[Printed])
    has_volume: bool = False
    """The client's volume is in it."""
    checkpoints: dict[str, dict[str, set[str]]] = field(default_factory=dict[str, dict[str, set[str]]])
    """Its files, as they were, by the names of its checkpoints."""
    unsure: bool = False
    """It was asked to go back and did not answer: it may do so at any time. A checkpoint waits for its turn behind that."""
    once: set[str] = field(default_factory=set[str])
    """Words of which each was written by a command that may run only once."""

    @property
    def id(self) -> str:
        return self.sandbox.id

    def alive(self, since: float) -> None:
        """It was asked something at `since` and has answered: what was done before that did not end it."""
        self.stopped = False
        self.blows = [(at, blow) for at, blow in self.blows if at >= since]
        if self.stop_asked is not None and since - self.stop_asked > LATE:
            self.stop_asked = None

    def ended(self, reason: Reason | None) -> None:
        """It was seen to be stopped."""
        self.life += not self.stopped
        self.stopped, self.reason = True, reason

    def may_say(self, *, holder_lost: bool) -> set[Reason]:
        """Reasons that are true of its stop. `holder_lost`: the holder was killed, and with it what it would have known of an end."""
        true: set[Reason] = set()
        if self.stop_asked is not None:
            true.add(Reason.REQUESTED)
        if self.stopped and self.reason is not None:
            true.add(self.reason)
        for _, blow in self.blows:
            match blow:
                case Blow.SENTRY | Blow.GOFER:
                    true.add(Reason.KILLED)
                case Blow.AGENT:
                    true.add(Reason.AGENT_DIED)
                case Blow.ORPHANED:
                    true.add(Reason.ENGINE_ERROR)
                case _:
                    assert_never(blow)
            if holder_lost:
                true.add(Reason.CRASHED)
        return true

    def why_gone(self) -> str:
        """For a violation: what is known."""
        blows = ", ".join(f"{blow} at {at:.1f}" for at, blow in self.blows) or "none"
        return f"{self.id} of {self.step}: blows {blows}; stop asked at {self.stop_asked}; deleted {self.doomed}; was stopped {self.stopped} ({self.reason})"
