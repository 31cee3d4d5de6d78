"""A living sentry with its gofer: two processes of the host, held by pidfds, so that no signal can reach a stranger."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
from dataclasses import dataclass
from pathlib import Path

from corral.errors import InternalError
from corral.node import runsc
from corral.node.holder_client import HolderClient

KILL_TIMEOUT = 20.0
"""Seconds for the kernel to tear down a killed sentry; it takes a few milliseconds, more when it has gigabytes."""


@dataclass(frozen=True)
class Identity:
    """The two processes, with their start times (in clock ticks since boot), which tell them from later ones of the same number. A `gofer` of 0: there is none."""

    pid: int
    pid_started: int
    gofer: int
    gofer_started: int


def started_at(pid: int) -> int:
    """When a process started, in clock ticks since boot (field 22 of /proc/PID/stat). Raises `ProcessLookupError`."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except FileNotFoundError:
        raise ProcessLookupError(f"no process {pid}") from None
    return int(stat[stat.rindex(b")") + 2 :].split()[19])


def control_socket(root: Path, id: str) -> tuple[Identity, str]:
    """The processes of a created sandbox and the path of its control socket, from runsc's state file."""
    path = runsc.state_files(root, id)[0]
    state = json.loads(path.read_bytes())
    pid, gofer = int(state["sandbox"]["pid"]), int(state.get("goferPid") or 0)
    return Identity(pid, started_at(pid), gofer, started_at(gofer) if gofer else 0), str(state["sandbox"]["controlSocketPath"])


class Sentry:
    """Signals and the end of one sentry."""

    def __init__(self, identity: Identity, holder: HolderClient) -> None:
        """Take hold of the processes. Raises `ProcessLookupError` when one is gone or its number belongs to another by now."""
        self.identity = identity
        self._holder = holder
        self._pidfds: dict[int, int] = {}
        try:
            for pid, started in ((identity.pid, identity.pid_started), (identity.gofer, identity.gofer_started)):
                if pid:
                    self._pidfds[pid] = os.pidfd_open(pid)
                    if started_at(pid) != started:
                        raise ProcessLookupError(f"process {pid} is another one by now")
        except BaseException:
            self.release()
            raise

    @property
    def pids(self) -> list[int]:
        return [pid for pid in (self.identity.pid, self.identity.gofer) if pid]

    @property
    def alive(self) -> bool:
        """Whether both processes run still, as the kernel says it now: the holder tells of an end a moment later."""
        ends = select.poll()
        for fd in self._pidfds.values():
            ends.register(fd, select.POLLIN)
        return not ends.poll(0)

    async def watch(self) -> None:
        """Have the holder tell when either process ends (`HolderClient.exit_of`)."""
        # They were alive when we took hold of them.
        await self._holder.watch(self.pids, fresh=True)

    def stop(self) -> None:
        """Take the sentry off the processors. Its gofer sleeps by itself."""
        self._signal(self.identity.pid, signal.SIGSTOP)

    def wake(self) -> None:
        self._signal(self.identity.pid, signal.SIGCONT)

    async def kill(self) -> int | None:
        """End both processes and wait until they are gone; returns the sentry's wait status."""
        for pid in self.pids:
            self._signal(pid, signal.SIGKILL)
        try:
            async with asyncio.timeout(KILL_TIMEOUT):
                statuses = [await asyncio.shield(self._holder.exit_of(pid)) for pid in self.pids]
        except TimeoutError:
            raise InternalError(
                f"sentry {self.identity.pid} was killed but is not gone after {KILL_TIMEOUT:g} s", hint=f"look at /proc/{self.identity.pid}/stack"
            ) from None
        return statuses[0]

    def release(self) -> None:
        for fd in self._pidfds.values():
            os.close(fd)
        self._pidfds.clear()

    def _signal(self, pid: int, number: signal.Signals) -> None:
        if (fd := self._pidfds.get(pid)) is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, number)
