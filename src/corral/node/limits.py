"""What the host allows a sandbox: what it asked for, and what its sentry needs on top."""

from __future__ import annotations

from dataclasses import replace

from corral.node.cgroup import Limits
from corral.node.interface import BoxSpec
from corral.schema.sandbox import SandboxCreate

SENTRY_MEMORY = 64
"""MiB on top of a sandbox's memory for its sentry, gofer and page tables (measured: 25 idle) …"""
SENTRY_MEMORY_SHARE = 8
"""… or this fraction of it, if that is more."""
SAVING_MEMORY = 512
"""MiB that a sentry may take to write its memory down, beyond twice what it may use otherwise: what it goes through stays in its heap for a while, and more so when a save was cut off
(one of 192 MiB in all had 334 MiB of its own then). Its guest stands still meanwhile, and can't use them."""
SENTRY_TASKS = 1024
"""Tasks of the host on top of those that the guest's processes need: some 60 threads of sentry and gofer, the rest time for the guest's own limit to work, since a sentry that is refused a task panics …"""
TASKS_PER_PROCESS = 4
"""… and so many for each process of the guest (measured: 2.1 to 2.9)."""


def limits(spec: BoxSpec) -> Limits:
    """The host's limits for a box: its own, and what its sentry needs on top."""
    return _limits(memory=spec.memory, pids=spec.pids, cpu=spec.cpu)


def saving(spec: BoxSpec) -> Limits:
    """While its memory is written down: by a sentry that also pays for the pages of the file, and isn't slowed down, since its guest waits."""
    own = limits(spec)
    return replace(own, memory=2 * own.memory + SAVING_MEMORY, cpu=None)


def usual() -> Limits:
    """Those of a sandbox of which nobody said how large it is: a waiting member has them, so that most claims need change nothing."""
    return _limits(**{name: SandboxCreate.model_fields[name].default for name in ("memory", "pids", "cpu")})


def _limits(*, memory: int, pids: int, cpu: float) -> Limits:
    return Limits(
        memory=memory + max(SENTRY_MEMORY, memory // SENTRY_MEMORY_SHARE),
        pids=SENTRY_TASKS + TASKS_PER_PROCESS * pids,
        cpu=cpu,
    )
