"""Why a sentry ended, from what the host can see. The guest has no say in it, except by the status its agent exits with."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

from corral.schema.sandbox import Reason


@dataclass(frozen=True)
class Evidence:
    """What is known of an ended sentry."""

    status: int | None
    """Wait status of the sentry; None when it was not our child to wait for."""
    oom_kills: int
    """Processes of its group the kernel killed for want of memory, since it was claimed."""
    panic: str
    """What the sentry wrote to its panic log."""
    gofer_first: bool = False
    """The gofer ended while the sentry was alive."""


def explain(evidence: Evidence) -> tuple[Reason, str]:
    """The reason word and a sentence. The kernel's killer comes first: it explains every status that follows from it."""
    if evidence.oom_kills:
        return Reason.OOM, "the sandbox used more memory than its limit"
    if evidence.gofer_first:
        return Reason.CRASHED, "the sandbox's file server (gofer) ended"
    status = evidence.status
    if evidence.panic:
        return Reason.CRASHED, f"the sandbox kernel panicked: {_first_line(evidence.panic)}"
    if status is None:
        return Reason.CRASHED, "the sandbox kernel ended while no server was running and left no status"
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
        if number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            return Reason.KILLED, f"the sandbox kernel was ended by {name} from outside"
        return Reason.CRASHED, f"the sandbox kernel was ended by {name}"
    return Reason.AGENT_DIED, f"the agent, the sandbox's first process, ended with {os.WEXITSTATUS(status)}"


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")[:300]
