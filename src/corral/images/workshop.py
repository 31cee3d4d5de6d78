"""Where a layer is built: aside, so that a killed build leaves nothing that looks like a layer; in memory when there is plenty, since package managers sync a lot."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from corral import spawn
from corral.node import mounts
from corral.places import Places

_MEMORY = Path("/dev/shm")  # noqa: S108 - only a directory that mkdir has made is used in it
_ROOM_IN_MEMORY = 4 << 30
"""Bytes that must be free for a build in memory. The largest image takes 1.2 GB while it is built, and is ready a third sooner."""


@contextmanager
def only_builder(places: Places) -> Generator[None]:
    """One builder at a time in one installation, which finds nothing that a killed one left. The lock goes with its process."""
    places.layers.mkdir(parents=True, exist_ok=True)
    # Layers hold set-user-id programs that get no security updates: no user of the host may reach them.
    places.layers.chmod(0o700)
    lock = os.open(places.layers / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in (*places.layers.glob(".building-*"), *places.layers.glob(".removed-*"), *_MEMORY.glob(f"{places.tag}-im-*")):
            _clear(left)
        yield
    finally:
        os.close(lock)


@contextmanager
def new_layer(places: Places, name: str) -> Generator[Path]:
    """An empty directory to fill, which becomes the layer of that name when the block ends well, and nothing when it doesn't."""
    aside = places.layers / f".building-{name}"
    room = _MEMORY / f"{places.tag}-{name}" if _is_room_in_memory() else aside
    try:
        room.mkdir(mode=0o755)
        yield room
        # Not as the umask of whoever runs this would have it: it is the sandbox's root directory.
        room.chmod(0o755)
        if room != aside:
            spawn.run(["cp", "-a", str(room), str(aside)], timeout=1800).check()
        aside.rename(places.layers / name)
    finally:
        for left in {room, aside}:
            _clear(left)


def _is_room_in_memory() -> bool:
    return _MEMORY.is_mount() and min(_available_memory(), shutil.disk_usage(_MEMORY).free) >= _ROOM_IN_MEMORY


def _available_memory() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def _clear(path: Path) -> None:
    # A build that was killed may have left the host's /dev or /proc mounted inside: deleting through those would be a disaster.
    mounts.sweep(path)
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        # Something of a killed build may still be writing there for a moment; what it leaves is cleared next time.
        shutil.rmtree(path, ignore_errors=True)
