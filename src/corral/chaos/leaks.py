"""What a home has on the machine: processes, mounts, control groups, loop devices, network devices and tables, files. Read from the kernel, not from the server."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from corral import spawn
from corral.places import Places

SANDBOX = re.compile(r"sb-[a-z2-7]{16}")


def of_sandboxes(places: Places) -> dict[str, list[str]]:
    """Every trace that carries a sandbox's id, by that id."""
    found: dict[str, list[str]] = {}
    for trace in (*_mounts(places), *_groups(places), *_loops(places), *_files(places.boxes, places.members, places.disks, places.spool)):
        for id in SANDBOX.findall(trace):
            found.setdefault(id, []).append(trace)
    return found


def of_home(places: Places) -> list[str]:
    """Everything of an installation that ought to be gone after `corral down`: all but its files that last."""
    return [
        *_processes(places),
        *_mounts(places),
        *_groups(places),
        *_loops(places),
        *_network(places),
        *_sockets(places),
        *_files(places.members, places.boxes),
    ]


def of_ended_home(places: Places, *, patience: float = 30.0) -> list[str]:
    """`of_home`, once `patience` seconds have been given: the kernel clears the last of it in the background. What stays counts."""
    deadline = time.monotonic() + patience
    while (left := of_home(places)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left


def _processes(places: Places) -> Iterator[str]:
    """Those in its control groups, and those that name its run directory."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            group = (entry / "cgroup").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if f"/{places.tag}" in group or str(places.run) in command:
            yield f"process {entry.name}: {command[:200]}"


def _mounts(places: Places) -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        target = line.split()[4]
        if target.startswith((f"{places.run}/", f"{places.home}/")):
            yield f"mount {target}"


def _groups(places: Places) -> Iterator[str]:
    for root in {Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").glob("*/")}:
        for group in (root / places.tag).glob("**/"):
            yield f"control group {group}"


def _loops(places: Places) -> Iterator[str]:
    for device in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            backing = device.read_text().strip()
        except OSError:
            continue
        if backing.startswith(str(places.home)):
            yield f"loop device {device.parts[3]}: {backing}"


def _network(places: Places) -> Iterator[str]:
    """Its device and its table in this machine's own namespace; the namespace of its sandboxes' devices is a mount."""
    if Path("/sys/class/net", places.tag).exists():
        yield f"network device {places.tag}"
    if shutil.which("nft") is not None:
        tables = spawn.run(["nft", "list", "tables"], timeout=20).stdout.decode()
        yield from (f"nftables {line}" for line in tables.splitlines() if line.split()[-1] == places.tag)


def _sockets(places: Places) -> Iterator[str]:
    for line in Path("/proc/net/unix").read_text().splitlines():
        if str(places.run) in line:
            yield f"socket {line.split()[-1]}"


def _files(*directories: Path) -> Iterator[str]:
    for directory in directories:
        if directory.is_dir():
            yield from (f"file {path}" for path in directory.iterdir() if not path.name.startswith("."))


def of_members(places: Places) -> list[str]:
    """Members of the engine of which only a part is there: places without processes, or a control group without places. A member that is just being made or taken apart is one."""
    made = {entry.name for entry in places.members.iterdir()} if places.members.is_dir() else set[str]()
    grouped = {group.rstrip("/").rpartition("/")[2] for group in _groups(places)} - {places.tag}
    alive = {path.rpartition("/")[2] for path in _group_paths(places)}
    halves = [f"member {name} has no process" for name in sorted(made - alive)]
    halves += [f"member {name} has no control group" for name in sorted(made - grouped)]
    return halves + [f"control group {name} has no member" for name in sorted(grouped - made) if name.startswith("m-")]


def processes_of_member(places: Places, member: str) -> list[int]:
    """Processes in a member's control group."""
    return [pid for pid, group in _grouped(places) if group.rpartition("/")[2] == member]


def _group_paths(places: Places) -> set[str]:
    return {group for _, group in _grouped(places)}


def _grouped(places: Places) -> Iterator[tuple[int, str]]:
    """Each process in a group of ours, and the group's path."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            lines = (entry / "cgroup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        for line in lines:
            path = line.partition(":")[2].partition(":")[2]
            if f"/{places.tag}/" in path:
                yield int(entry.name), path
                break
