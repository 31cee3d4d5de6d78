"""Where the images of disks live: a file system that can share blocks between files, so that a new disk or a copy of one costs a millisecond.

One of three kinds, found out by trying and kept from then on:
    the home's own file system, when it can (XFS or btrfs);
    an XFS in a sparse file in the home, mounted at `<home>/pool`;
    any other file system, with copies instead of shared blocks: slower and bigger, and said so.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import BinaryIO

import structlog

from corral import spawn
from corral.errors import PlatformError, SetupError, Unavailable
from corral.node import ext4, loop, mounts, syscalls
from corral.node.syscalls import MountFlag
from corral.places import Places

log = structlog.get_logger(__name__)

_SHARE_OF_FREE_DISK = 0.6
_LEAST = 1 << 30
_TEMPLATES = 64
_PATIENCE = 10.0
"""Seconds that `close` waits for the pool's last users."""


class PoolKind(Enum):
    HOME = "home"
    """The home's own file system shares blocks."""
    XFS_FILE = "xfs_file"
    """An XFS in a sparse file."""
    COPIES = "copies"
    """No shared blocks."""


class DiskPool:
    """Makes image files. All of it blocks; `new_image` takes under a millisecond once the size has been asked for before.

    `size` is the greatest size of the sparse file in bytes, used when it is made (default: 60 % of what is free). Beyond `high_water` (a share of
    the pool or of the disk it lies on) no new image is made, so that the disks there are have room to be written.
    """

    def __init__(self, places: Places, *, size: int | None = None, high_water: float = 0.95) -> None:
        self._places = places
        self._size = size
        self._high_water = high_water
        self._kind: PoolKind | None = None
        self._making_template = threading.Lock()

    @property
    def kind(self) -> PoolKind:
        assert self._kind is not None, "the pool is not open"
        return self._kind

    def open(self) -> None:
        """Find or make the pool and mount it. Raises `SetupError` when there can't be one here."""
        places = self._places
        places.pool.mkdir(mode=0o700, parents=True, exist_ok=True)
        if places.pool_image.exists():
            self._mount()
            self._kind = PoolKind.XFS_FILE
        elif shares_blocks(places.pool):
            self._kind = PoolKind.HOME
        elif (why := _no_xfs()) is None:
            self._make()
            self._mount()
            self._kind = PoolKind.XFS_FILE
        else:
            self._kind = PoolKind.COPIES
            log.warning("disks are copied, not cloned: creating and snapshotting sandboxes is slower and takes more space", why=why)
        # Disks hold whatever their sandboxes wrote: no user of the host may look.
        for directory in (places.disks, places.snapshots, places.volumes):
            directory.mkdir(mode=0o700, exist_ok=True)
        self._templates.mkdir(mode=0o700, exist_ok=True)

    def close(self) -> None:
        """Unmount the pool and wait until its file is free. Disks must be unmounted before.

        The kernel ends the disks of sandboxes killed just now in the background, and holds the pool until then. What still holds it after 10 s keeps it, unseen.
        """
        if self.kind is not PoolKind.XFS_FILE:
            return
        if self._places.pool.is_mount() and not _within(_PATIENCE, self._unmount):
            log.warning("something still uses the disk pool; it is unmounted when that ends", pool=str(self._places.pool))
            mounts.sweep(self._places.pool)
            return
        # What it was mounted on.
        mounts.sweep(self._places.pool)
        if not _within(_PATIENCE, lambda: not loop.behind_device(self._places.pool_image)):
            log.warning("the disk pool's loop device is still there", file=str(self._places.pool_image))

    def _unmount(self) -> bool:
        try:
            syscalls.umount(self._places.pool)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            return False
        return True

    def new_image(self, target: Path, mib: int, *, volume: bool = False) -> None:
        """An empty ext4 image of that size, for a disk or a volume. Raises `Unavailable` beyond the high-water mark."""
        self._refuse_when_full()
        aside = target.with_name(f".new-{target.name}")
        with self._template(mib, volume=volume) as source, aside.open("wb") as copy:
            os.fchmod(copy.fileno(), 0o600)
            self._share(source.fileno(), copy.fileno())
        aside.rename(target)

    def _refuse_when_full(self) -> None:
        for place in (self._places.pool, self._places.home):
            status = os.statvfs(place)
            if status.f_bavail < status.f_blocks * (1 - self._high_water):
                free = status.f_bavail * status.f_frsize / (1 << 30)
                raise Unavailable(
                    f"the node has no room for another disk: {free:.1f} GiB are left in {place}",
                    hint="delete sandboxes or images, or give the machine more disk",
                    details={"resource": "disk"},
                )

    def copy(self, source: Path, target: Path) -> None:
        """Make `target` a copy of `source`, which shares its blocks where the pool can. Raises `Unavailable` beyond the high-water mark."""
        self._refuse_when_full()
        with source.open("rb") as original, target.open("wb") as copy:
            os.fchmod(copy.fileno(), 0o600)
            self._share(original.fileno(), copy.fileno())

    def _share(self, source: int, target: int) -> None:
        if self.kind is PoolKind.COPIES:
            _copy_sparse(source, target)
        else:
            syscalls.reflink(source, target)

    @property
    def _templates(self) -> Path:
        return self._places.pool / "templates"

    def _template(self, mib: int, *, volume: bool) -> BinaryIO:
        """The empty file system that new images of this size are clones of. The 64 last made are kept."""
        template = self._templates / f"ext4-1-{mib}{'-volume' if volume else ''}.img"
        with self._making_template:
            if not template.exists():
                kept = sorted(self._templates.glob("ext4-*.img"), key=lambda path: path.stat().st_mtime)
                for old in kept[: max(0, len(kept) - _TEMPLATES + 1)]:
                    old.unlink()
                ext4.make(template, mib, volume=volume)
            return template.open("rb")

    def _make(self) -> None:
        free = shutil.disk_usage(self._places.home).free
        size = self._size or int(free * _SHARE_OF_FREE_DISK)
        if size < _LEAST or size > free:
            raise SetupError(
                f"the disk pool needs between 1 GiB and the {free / (1 << 30):.1f} GiB that are free in {self._places.home}, not {size / (1 << 30):.1f} GiB",
                hint="free some space, or set CORRAL_HOME to a directory on a larger disk",
            )
        # In the directory that it is to be mounted on: where that is encrypted, so is the file, wherever it goes.
        room = self._places.home if self._places.pool.is_mount() else self._places.pool
        aside = room / f".new-{self._places.pool_image.name}"
        with aside.open("wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.truncate(size // loop.BLOCK * loop.BLOCK)
        spawn.run(["mkfs.xfs", "-q", "-f", "-s", f"size={loop.BLOCK}", "-m", "reflink=1", str(aside)], timeout=120).check()
        aside.rename(self._places.pool_image)
        log.info("made the disk pool; its space is taken as it is used", file=str(self._places.pool_image), gib=round(size / (1 << 30)))

    def _mount(self) -> None:
        if self._places.pool.is_mount():
            return
        mounts.lead(self._places.pool)
        with loop.attached(self._places.pool_image) as device:
            # discard: what is deleted in the pool goes back to the disk under it.
            flags = MountFlag.NOATIME | MountFlag.NODEV | MountFlag.NOSUID
            try:
                syscalls.mount(device.path, self._places.pool, "xfs", flags=flags, data="discard")
            except OSError as error:
                raise PlatformError(
                    f"the disk pool {self._places.pool_image} can't be mounted: {error.strerror}",
                    hint=f"see `dmesg`; `xfs_repair {self._places.pool_image}` mends what a power loss broke",
                ) from error
        # For what is mounted in it (see `mounts.lead`).
        syscalls.make_shared(self._places.pool)


def shares_blocks(directory: Path) -> bool:
    """Whether files there can share blocks (FICLONE), found out by doing it."""
    source, copy = directory / f".reflink-{os.getpid()}", directory / f".reflink-{os.getpid()}-copy"
    try:
        source.write_bytes(bytes(loop.BLOCK))
        with source.open("rb") as original, copy.open("wb") as clone:
            syscalls.reflink(original.fileno(), clone.fileno())
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS):
            raise
        return False
    else:
        return True
    finally:
        source.unlink(missing_ok=True)
        copy.unlink(missing_ok=True)


def _within(seconds: float, done: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _no_xfs() -> str | None:
    """Why there can be no XFS in a file here, if there can't."""
    if not shutil.which("mkfs.xfs"):
        return "mkfs.xfs is missing (apt-get install xfsprogs)"
    if not loop.available():
        return "this machine has no loop devices"
    if not _knows_xfs() and (not shutil.which("modprobe") or spawn.run(["modprobe", "xfs"], timeout=30).code):
        return "the kernel has no XFS"
    return None


def _knows_xfs() -> bool:
    return any(line.split()[-1] == "xfs" for line in Path("/proc/filesystems").read_text().splitlines())


def _copy_sparse(source: int, target: int) -> None:
    """Copy a file's data and leave its holes holes."""
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    position = 0
    while position < size:
        try:
            start = os.lseek(source, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data from here on
                return
            raise
        position = os.lseek(source, start, os.SEEK_HOLE)
        offset = start
        while offset < position:
            offset += os.copy_file_range(source, target, position - offset, offset, offset)
