"""Limits and counters of the host for one sandbox: a control group of its own in every hierarchy that matters.

All groups of an installation are below one named by `Places.tag`, at the top of each hierarchy. Version 1, version 2 and the mix of both are served; which controller is where is read from
the mounts. Sources: Documentation/admin-guide/cgroup-v1/ and cgroup-v2.rst of the kernel.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from corral.errors import SetupError

Controller = Literal["memory", "cpu", "cpuacct", "pids"]
CONTROLLERS: tuple[Controller, ...] = ("memory", "cpu", "cpuacct", "pids")
MIB = 1 << 20
PERIOD = 100_000
"""Microseconds over which a share of the cpu is given (the kernel's default)."""
WEIGHT = 25
"""Of all sandboxes of an installation together, where the server and whatever else the machine does at that level have 100 each: on a machine that sandboxes keep busy, the server that
answers for them all must not stand in one line with them. Only counts while processors are short (decision 007)."""


@dataclass(frozen=True)
class Limits:
    """What a group may use. `cpu` in cores, None for no limit; `memory` in MiB; `weight` is the share when the machine is busy, 100 the usual."""

    memory: int
    pids: int
    cpu: float | None = None
    weight: int = 100


@dataclass(frozen=True)
class Usage:
    cpu_seconds: float
    memory: int
    """Bytes charged, less the file cache the kernel can drop at once."""
    tasks: int


@dataclass(frozen=True)
class Hierarchies:
    """Where each controller is: version 1 directories by controller, and the version 2 directory if it serves any."""

    v1: Mapping[Controller, Path]
    v2: Path | None
    v2_controllers: frozenset[Controller]

    @cached_property
    def roots(self) -> list[Path]:
        """Each hierarchy once (version 1 often mounts cpu and cpuacct together)."""
        roots = {path.resolve(): None for path in self.v1.values()}
        if self.v2 is not None:
            roots[self.v2] = None
        return list(roots)


def parse_mounts(mountinfo: str) -> tuple[dict[Controller, Path], Path | None]:
    """Control group mounts in the text of /proc/self/mountinfo."""
    v1: dict[Controller, Path] = {}
    v2: Path | None = None
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields, (fstype, _, options) = before.split(), after.split(None, 2)
        if fstype == "cgroup2" and v2 is None:
            v2 = Path(fields[4])
        elif fstype == "cgroup":
            for option in options.split(","):
                if option in CONTROLLERS:
                    v1.setdefault(option, Path(fields[4]))
    return v1, v2


def find_hierarchies() -> Hierarchies:
    """Read where the controllers are. Raises `SetupError` when one we need is nowhere."""
    v1, v2 = parse_mounts(Path("/proc/self/mountinfo").read_text())
    served: frozenset[Controller] = frozenset()
    if v2 is not None:
        words = set((v2 / "cgroup.controllers").read_text().split())
        served = frozenset(name for name in CONTROLLERS if name in words and name not in v1)
    missing = {"memory", "cpu", "pids"} - v1.keys() - served
    if missing:
        raise SetupError(
            f"the kernel offers no control groups for {', '.join(sorted(missing))} here",
            hint="mount cgroup2 at /sys/fs/cgroup; on a kernel command line with cgroup_disable= remove it; in a container give it its own writable cgroup namespace",
        )
    return Hierarchies(v1, v2 if served else None, served)


class Group:
    """One control group in all hierarchies. Knows its files, and the limits it was last given here."""

    def __init__(self, hierarchies: Hierarchies, name: str) -> None:
        self._v1 = {controller: path / name for controller, path in hierarchies.v1.items()}
        self._v2 = hierarchies.v2 / name if hierarchies.v2 is not None else None
        self._directories = [root / name for root in hierarchies.roots]
        self._limits: Limits | None = None

    @property
    def procs(self) -> list[Path]:
        """The files by which a process joins."""
        return [directory / "cgroup.procs" for directory in self._directories]

    def create(self, limits: Limits | None = None) -> None:
        """Make it. Takes milliseconds in version 1."""
        for directory in self._directories:
            directory.mkdir(exist_ok=True)
        if limits is not None:
            self.limit(limits)

    def remove(self) -> bool:
        """Whether it is gone now. False: a process in it has not quite ended."""
        for directory in self._directories:
            try:
                directory.rmdir()
            except FileNotFoundError:
                pass
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                return False
        return True

    def members(self) -> set[int]:
        """Processes in it, in any hierarchy."""
        pids: set[int] = set()
        for path in self.procs:
            with contextlib.suppress(FileNotFoundError):
                pids.update(int(line) for line in path.read_text().split())
        return pids

    def limit(self, limits: Limits) -> None:
        """Set all limits; what was set here before is not written again. Lowering memory below what is in use makes the kernel reclaim and, failing that, kill."""
        before, self._limits = self._limits, None
        if before is None or before.memory != limits.memory:
            self._limit_memory(limits.memory * MIB)
        if before is None or before.cpu != limits.cpu:
            self._limit_cpu(-1 if limits.cpu is None else max(1000, math.ceil(limits.cpu * PERIOD)))
        if before is None or before.weight != limits.weight:
            self.weigh(limits.weight)
        if (before is None or before.pids != limits.pids) and (directory := self._v1.get("pids") or self._v2):
            _write(directory / "pids.max", limits.pids)
        self._limits = limits

    def weigh(self, weight: int) -> None:
        """Its share beside groups and processes of the same level when processors are short, 100 the usual."""
        if directory := self._v1.get("cpu"):
            _write(directory / "cpu.shares", max(2, weight * 1024 // 100))
        elif self._v2:
            _write(self._v2 / "cpu.weight", weight)

    def _limit_cpu(self, quota: int) -> None:
        """So many microseconds in each `PERIOD`; below 0: without a limit.

        What was not used may be used up to one period later, so that a sandbox that was idle gets its first commands done at the speed of the machine. On average its share holds. Starting a
        program in gVisor keeps two processors busy: against a quota of one core the kernel stops it half of the time (measured: 12 of 15 periods).
        """
        if directory := self._v1.get("cpu"):
            share, burst, value = directory / "cpu.cfs_quota_us", directory / "cpu.cfs_burst_us", str(quota)
        elif self._v2:
            share, burst, value = self._v2 / "cpu.max", self._v2 / "cpu.max.burst", f"{'max' if quota < 0 else quota} {PERIOD}"
        else:
            return
        bursts = burst.exists()  # since Linux 5.14
        if bursts:
            _write(burst, 0)  # it may never be above the share, whichever that was
        _write(share, value)
        if bursts and quota > 0:
            _write(burst, quota)

    def _limit_memory(self, memory: int) -> None:
        if directory := self._v1.get("memory"):
            self._set_v1_memory(directory, memory)
        elif self._v2:
            _write(self._v2 / "memory.max", memory)
            for name, value in (("memory.swap.max", 0), ("memory.oom.group", 1)):
                # Missing in kernels without swap accounting, or older than 4.19.
                with contextlib.suppress(FileNotFoundError):
                    _write(self._v2 / name, value)

    @staticmethod
    def _set_v1_memory(directory: Path, memory: int) -> None:
        # memory + swap may never be below memory, so the one that grows goes first.
        both = directory / "memory.memsw.limit_in_bytes"
        names = [directory / "memory.limit_in_bytes", *([both] if both.exists() else [])]
        if len(names) == 2 and int(both.read_text()) < memory:
            names.reverse()
        for name in names:
            _write(name, memory)

    def usage(self) -> Usage:
        """What it uses now: a few small reads, cheap enough for every request."""
        if directory := self._v1.get("cpuacct"):
            cpu = int((directory / "cpuacct.usage").read_text()) / 1e9
        elif self._v2:
            cpu = _fields(self._v2 / "cpu.stat").get("usage_usec", 0) / 1e6
        else:
            cpu = 0.0
        if directory := self._v1.get("memory"):
            stat = _fields(directory / "memory.stat")
            memory = int((directory / "memory.usage_in_bytes").read_text()) - stat.get("total_inactive_file", 0)
        else:
            assert self._v2 is not None
            memory = int((self._v2 / "memory.current").read_text()) - _fields(self._v2 / "memory.stat").get("inactive_file", 0)
        pids = self._v1.get("pids") or self._v2
        assert pids is not None
        return Usage(cpu, max(0, memory), int((pids / "pids.current").read_text()))

    def cpu_seconds(self) -> float:
        """Processor time used since it was created."""
        if directory := self._v1.get("cpuacct"):
            return int(_read(directory / "cpuacct.usage")) / 1e9
        assert self._v2 is not None
        return _fields(self._v2 / "cpu.stat").get("usage_usec", 0) / 1e6

    def oom_kills(self) -> int:
        """Processes in it the kernel has killed for want of memory. 0 when the group is gone."""
        with contextlib.suppress(FileNotFoundError):
            if directory := self._v1.get("memory"):
                return _fields(directory / "memory.oom_control").get("oom_kill", 0)
            assert self._v2 is not None
            return _fields(self._v2 / "memory.events").get("oom_kill", 0)
        return 0

    def tasks_refused(self) -> int:
        """How often a fork was refused by the limit of tasks."""
        with contextlib.suppress(FileNotFoundError):
            directory = self._v1.get("pids") or self._v2
            assert directory is not None
            return _fields(directory / "pids.events").get("max", 0)
        return 0


class Groups:
    """The subtree of one installation."""

    def __init__(self, hierarchies: Hierarchies, tag: str) -> None:
        self._hierarchies = hierarchies
        self._tag = tag
        self._top = Group(hierarchies, tag)

    def open(self) -> None:
        """Make the subtree and, in version 2, hand the controllers down to it. Raises `SetupError` where that isn't allowed."""
        try:
            if (v2 := self._hierarchies.v2) is not None:
                _enable(v2, self._hierarchies.v2_controllers)
            self._top.create()
            self._top.weigh(WEIGHT)
            if v2 is not None:
                _enable(v2 / self._tag, self._hierarchies.v2_controllers)
        except OSError as error:
            raise SetupError(
                f"control groups can't be made: {error}",
                hint="run the server as root; in a container give it a writable cgroup namespace whose top group has no processes of its own",
            ) from error

    def group(self, name: str) -> Group:
        return Group(self._hierarchies, f"{self._tag}/{name}")

    def names(self) -> set[str]:
        """The groups there are."""
        found: set[str] = set()
        for root in self._hierarchies.roots:
            with contextlib.suppress(FileNotFoundError):
                found.update(entry.name for entry in os.scandir(root / self._tag) if entry.is_dir())
        return found

    def remove(self) -> bool:
        """Remove the empty subtree."""
        return self._top.remove()


def _enable(directory: Path, controllers: Iterable[str]) -> None:
    control = directory / "cgroup.subtree_control"
    missing = set(controllers) - {"cpuacct"} - set(control.read_text().split())
    for name in sorted(missing):
        _write(control, f"+{name}")


def _write(path: Path, value: int | str) -> None:
    # One write(2) without buffering: a control file takes a whole value or refuses it.
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, str(value).encode())
    finally:
        os.close(fd)


def _read(path: Path) -> bytes:
    """A short control file, in half the system calls of `Path.read_bytes`."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)


def _fields(path: Path) -> dict[str, int]:
    """A flat keyed file: `name value` on each line."""
    pairs = (line.split() for line in path.read_text().splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}
