"""One claimed, running sandbox as the engine has it."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from corral.node.agentlog import AgentLog
from corral.node.cgroup import MIB, Group
from corral.node.interface import BoxSpec
from corral.node.members import Member
from corral.schema.observe import LogLine, Sample


class RunscBox:
    """A claimed member. Implements `interface.Box`."""

    def __init__(self, spec: BoxSpec, member: Member, *, disk_used: Callable[[str], int]) -> None:
        self.id = spec.id
        self.spec = spec
        self.member = member
        self.pid = member.sentry.identity.pid
        self.ending: asyncio.Task[None] | None = None
        """The one task that takes it apart, whoever asked first."""
        self.on_detach: Callable[[], None] = lambda: None
        """Called before its descriptors are closed."""
        self._disk_used = disk_used
        self._log = AgentLog(member.log)
        self._seen = (time.monotonic(), self.cpu_seconds())

    @property
    def control(self) -> socket.socket:
        """Our end of the agent's descriptor 0."""
        return self.member.control

    @property
    def relay(self) -> socket.socket:
        """Our end of the agent's descriptor 1: relays of ports."""
        return self.member.relay

    @property
    def root(self) -> Path:
        """The sandbox's root file system as the host has it mounted. For reading: what the host changes here the guest need not notice."""
        return self.member.places.rootfs

    @property
    def volumes(self) -> Path:
        """What the host mounts in here appears under /vol in the sandbox."""
        return self.member.places.volumes

    @property
    def packets(self) -> socket.socket | None:
        """Readable while packets wait for the sandbox."""
        return self.member.packets

    @property
    def address(self) -> str | None:
        """Of its network device, if it has one."""
        return None if self.member.slot is None else self.member.slot.address

    @property
    def group(self) -> Group:
        return self.member.group

    def freeze(self) -> None:
        """No processor time until `thaw` (SIGSTOP of the sentry, 0 CPU, back in about a millisecond).

        For idle sandboxes: guest code that is computing goes on until its next system call.
        """
        self.member.sentry.stop()

    def thaw(self) -> None:
        self.member.sentry.wake()

    def cpu_seconds(self) -> float:
        """Processor time used since the sandbox's member was made."""
        return self.member.group.cpu_seconds()

    def guest_cpu_seconds(self) -> float:
        """Processor time of the guest's own code alone: of systrap's stub processes, without the sentry, which polls even when all inside sleeps.

        Only differences mean something. A process that comes or goes between two readings counts as use.
        """
        return sum(_process_cpu_seconds(pid) for pid in self.member.group.members().difference(self.member.sentry.pids))

    def sample(self) -> Sample:
        """Use as the host sees it. `processes` are tasks of the host, which the agent's own count is better than."""
        usage = self.member.group.usage()
        now = time.monotonic()
        before, cpu_before = self._seen
        self._seen = (now, usage.cpu_seconds)
        rate = (usage.cpu_seconds - cpu_before) / (now - before) if now > before else 0.0
        return Sample(
            at=datetime.now(UTC),
            cpu_seconds=usage.cpu_seconds,
            cpu=max(0.0, rate),
            memory=usage.memory / MIB,
            memory_limit=self.spec.memory,
            disk=self._disk_used(self.id) / MIB,
            disk_limit=self.spec.disk,
            processes=usage.tasks,
        )

    def log_lines(self) -> list[LogLine]:
        """The last lines of the agent's log."""
        return self._log.lines()

    def detach(self) -> None:
        """Stop following its descriptors; before they are closed."""
        self.on_detach()
        self._log.close()


def _process_cpu_seconds(pid: int) -> float:
    """Of all threads of any process: the clock whose id clock_getcpuclockid(3) makes, `CPUCLOCK_SCHED` (2) of that process."""
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0  # it has just ended
