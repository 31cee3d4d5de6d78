"""What the parts of a node promise each other, and what a node promises the control plane. No code, only shapes.

api, control ──► Node ──► Engine ──► holder, sentry, urpc, cgroup, pool
                  │         └──────► Disks (writable layers), rootfs (overlay)
                  └──► Guest ──► Link ──► wire ──► (socket) ──► agent in the sandbox
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from corral.schema.egress import EgressPolicy
from corral.schema.observe import Sample
from corral.schema.sandbox import Reason


@dataclass(frozen=True)
class Warm:
    """That an image has memory, and what the sandbox had that it is of: its `memory` (MiB) and `pids`, and whether its user may become root. `size`: bytes of the memory's files."""

    memory: int
    pids: int
    sudo: bool
    size: int


@dataclass(frozen=True)
class ImageSpec:
    """An image as the engine needs it. `layers` from the lowest up: directories, or ext4 images to be mounted read-only.

    `seed`: the ext4 image that a sandbox's disk is a copy of at first, in place of one more layer. `warm`: it is a snapshot with memory.
    """

    id: str
    name: str | None
    layers: tuple[Path, ...]
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    user: str | None = None
    workdir: str | None = None
    command: tuple[str, ...] | None = None
    seed: Path | None = None
    warm: Warm | None = None


@dataclass(frozen=True)
class VolumeUse:
    """A volume that a sandbox has, at an absolute path inside: the whole of it, or its directory `sub_path`."""

    id: str
    path: str
    read_only: bool = False
    sub_path: str = ""
    name: str = ""
    """Under which the sandbox's memory knows it, where that does not follow from the rest: it is a fork, and has another volume in place of its source's."""


@dataclass(frozen=True)
class BoxSpec:
    """Everything the node needs to start one sandbox."""

    id: str
    image: ImageSpec
    cpu: float
    memory: int
    disk: int
    pids: int
    env: Mapping[str, str]
    user: str | None
    workdir: str | None
    hostname: str
    sudo: bool = True
    volumes: tuple[VolumeUse, ...] = ()
    egress: EgressPolicy = field(default_factory=EgressPolicy)
    tmp_on_disk: bool = False
    """The directory for temporary files is a part of the disk, as builds need it, and not of memory."""
    freeze: bool = True
    """It may be frozen while nobody uses it, where that spares something."""
    exposed: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    """Variables that hold secrets: the guest is told them when it is claimed; they are written nowhere."""


@dataclass(frozen=True)
class Child:
    """A fork to be made. `secrets`: values by name, of those that its egress policy uses."""

    spec: BoxSpec
    secrets: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)


@dataclass(frozen=True)
class Moment:
    """Of a sandbox's disk: a snapshot, by its id; its image (`image`); or, without either, how it is now."""

    snapshot: str | None = None
    image: bool = False


@dataclass(frozen=True)
class Ended:
    """A sandbox ended by itself (not because the node was asked to)."""

    id: str
    reason: Reason
    detail: str | None
    disk_kept: bool


OnEnd = Callable[[Ended], Awaitable[None]]
Timing = dict[str, float]
"""Seconds by phase: claim, rootfs, start, ready, total; and `cold`: 1.0 when no warm member was there."""


class Box(Protocol):
    """One claimed, running sentry with its root mounted. Made by the engine."""

    id: str
    pid: int

    @property
    def control(self) -> socket.socket:
        """The node's end of the agent's descriptor 0 (SOCK_SEQPACKET, non-blocking)."""
        ...

    def freeze(self) -> None: ...
    def thaw(self) -> None: ...
    def sample(self) -> Sample: ...


class Engine(Protocol):
    """Starts, finds again and ends sentries. Knows nothing of processes or files inside them."""

    async def open(self, on_death: OnEnd) -> list[Box]:
        """Ready the engine; returns the boxes of an earlier server that still live, adopted."""
        ...

    async def close(self) -> None:
        """Leave: boxes go on living with the holder."""
        ...

    async def claim(self, spec: BoxSpec) -> tuple[Box, Timing]:
        """A running sentry whose host-side root is mounted and whose agent is awake but not yet claimed (the caller sends `hello` and `claim`)."""
        ...

    async def kill(self, id: str) -> None:
        """End the sentry and unmount; the disk is kept. Idempotent."""
        ...

    async def shutdown(self) -> None:
        """End everything of this installation: boxes, pool, holder, mounts, cgroups."""
        ...


class Rootfs(Protocol):
    """How a sandbox's root is put together: `corral.node.rootfs`."""

    def mount_root(self, member_root: Path, layers: tuple[Path, ...], writable: Path) -> None: ...
    def unmount_root(self, member_root: Path) -> None: ...


class Disks(Protocol):
    """Writable layers. Each has a hard size and outlives its sentry."""

    async def open(self) -> None: ...
    async def attach(self, id: str, mib: int, *, seed: Path | None = None) -> Path:
        """Create (or find) the disk of a sandbox and mount it; returns the directory that holds `u` (upper) and `w` (work). A new one is a copy of `seed`."""
        ...

    async def detach(self, id: str) -> None: ...
    async def remove(self, id: str) -> None: ...
    def used(self, id: str) -> int:
        """Bytes written, as the host sees them."""
        ...
