"""What is mounted in this mount namespace, and how to take down everything below a directory."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from corral.node import syscalls


@dataclass(frozen=True)
class Mount:
    """One line of /proc/self/mountinfo. `source` is the device of a disk and whatever was said of anything else."""

    id: int
    parent: int
    target: Path
    fstype: str
    source: str
    options: str


def table() -> list[Mount]:
    """Everything mounted, in the order of mounting within one place. Costs milliseconds when there are thousands: not for request paths."""
    return [parse(line) for line in Path("/proc/self/mountinfo").read_bytes().splitlines()]


def parse(line: bytes) -> Mount:
    """One line, as proc(5) describes it: `36 35 98:0 /root /target rw,noatime shared:1 - ext4 /dev/sda rw`."""
    before, _, after = line.rstrip(b"\n").partition(b" - ")
    fields = before.split(b" ")
    fstype, source, options = after.split(b" ", 2)
    return Mount(
        int(fields[0]), int(fields[1]), Path(os.fsdecode(_unescape(fields[4]))), os.fsdecode(fstype), os.fsdecode(_unescape(source)), os.fsdecode(options)
    )


def below(directory: Path) -> list[Mount]:
    """What is mounted at or below a directory, in an order in which it can be unmounted."""
    within = [mount for mount in table() if mount.target == directory or directory in mount.target.parents]
    return sorted(within, key=lambda mount: len(mount.target.parts), reverse=True)


def lead(directory: Path) -> None:
    """Have what is unmounted directly below a directory, from now on, leave every other mount namespace too. `sweep` undoes that.

    A runsc that is being started has a copy of all mounts of this machine until it has found its own root, which takes seconds when there is much to do. Where mounts
    are not shared (as everywhere without systemd) such a copy would keep a disk, and the loop device under it, long after it was unmounted here. What decides is
    the mount that something is mounted on: so the directory becomes one of its own, and a shared one.
    """
    if not below(directory):  # there is one already, or an earlier version's server has mounted here
        syscalls.bind(directory, directory)
        # Of a group of its own: else what is mounted in it would be mounted in the directory beneath too.
        syscalls.make_private(directory)
        syscalls.make_shared(directory)


def sweep(directory: Path) -> int:
    """Unmount everything at or below a directory, lazily where it is in use; returns how many mounts there were."""
    found = below(directory)
    for mount in found:
        syscalls.umount(mount.target, lazy=True)
    return len(found)


def _unescape(field: bytes) -> bytes:
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), field)
