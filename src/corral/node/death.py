"""Why a sentry ended, from what the host can see. The guest has no say in it, except by the status its agent exits with."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from corral.node.cgroup import Group
from corral.node.member import MemberPlaces
from corral.schema.sandbox import Reason

FOLLOWING = 10.0
"""Seconds a sentry may take to end after its agent: on a busy machine that is more than one."""
APART = 0.5
"""Seconds a sentry and its gofer may end apart; a sentry that lives on longer without one is ended."""


@dataclass(frozen=True)
class Evidence:
    """What is known of an ended sentry."""

    status: int | None
    """Wait status of the sentry; None when it was not our child to wait for."""
    oom_kills: int
    """Processes of its group the kernel killed for want of memory, since it was claimed."""
    tasks_refused: int
    """How often the host refused it another task. The margin is wide, but when it is met the sentry panics."""
    panic: str
    """What the sentry wrote to its panic log."""
    gofer_first: bool = False
    """The gofer did not end because its sentry did. A sentry of 20240729 kills its guest when it loses its gofer, and exits with 137."""
    holder_lost: bool = False
    """The holder that would have seen it end was lost. The agent ends when its sockets go with a holder, so the sentry's end follows from that."""


async def ends(exits: Sequence[asyncio.Future[int | None]]) -> None:
    """Until it is known how a sentry and its gofer ended: each leaves when the other does, and the sentry when its agent does. What takes too long is not waited for."""
    await asyncio.wait(exits, timeout=FOLLOWING, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.wait(exits, timeout=APART)


def evidence(exits: Sequence[asyncio.Future[int | None]], group: Group, places: MemberPlaces) -> Evidence:
    """What is known of a sentry that has ended, before its places are cleared away. `exits`: its own and, when there was one to wait for, its gofer's."""
    status, gofer = (*(end.result() if end.done() else None for end in exits), None)[:2]
    return Evidence(
        status=status,
        oom_kills=group.oom_kills(),
        tasks_refused=group.tasks_refused(),
        panic=places.excerpt(places.panic_log),
        gofer_first=gofer is not None and os.WIFSIGNALED(gofer) and not (status is not None and os.WIFSIGNALED(status)),
    )


def explain(evidence: Evidence) -> tuple[Reason, str]:
    """The reason word and a sentence. The kernel's killer comes first: it explains every status that follows from it."""
    if evidence.oom_kills:
        return Reason.OOM, "the sandbox used more memory than its limit"
    if evidence.gofer_first:
        return Reason.KILLED, "the sandbox's file server (gofer) was ended from outside"
    status = evidence.status
    if evidence.panic:
        if evidence.tasks_refused:
            return Reason.PIDS, "the sandbox's processes needed more tasks of the host than its limit"
        return Reason.CRASHED, f"the sandbox kernel panicked: {_cause(evidence.panic)}"
    if status is None and evidence.holder_lost:
        return Reason.ENGINE_ERROR, "its holder was lost while no server was there, and the sandbox with it"
    if status is None:
        return Reason.CRASHED, "the sandbox kernel ended and left no status"
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
        if number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            return Reason.KILLED, f"the sandbox kernel was ended by {name} from outside"
        return Reason.CRASHED, f"the sandbox kernel was ended by {name}"
    return Reason.AGENT_DIED, f"the agent, the sandbox's first process, ended with {os.WEXITSTATUS(status)}"


def _cause(panic: str) -> str:
    """The line of a Go panic that says what happened."""
    lines = [line.strip() for line in panic.splitlines() if line.strip()]
    telling = (line for line in lines if line.startswith(("panic:", "fatal error:", "runtime:", "SIG", "unexpected fault")))
    return next(telling, lines[0])[:300]
