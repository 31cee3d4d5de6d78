"""The disks of sandboxes: one ext4 image each, mounted where the host's overlayfs finds it.

    <pool>/disks/<name>.img          the image
    <run>/disks/<name>/m             where it is mounted; in it `u` (upper) and `w` (work)

`<name>` is a sandbox's id, or `stock-…` for a disk that waits, mounted, for a sandbox. Giving a waiting disk to a sandbox is two renames: a directory can be renamed
while something below it is mounted. All that is known is in these names, so a new server finds everything an earlier one left.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import structlog

from corral.errors import CorralError, InvalidState, NotFound
from corral.ids import new_id
from corral.node import capture, ext4, mounts, syscalls
from corral.node.disk_pool import DiskPool
from corral.node.turns import Turns
from corral.places import Places

T = TypeVar("T")
log = structlog.get_logger(__name__)

_CALM = 0.3
"""Seconds after an attach in which no disk is prepared: a new sandbox's first command is worth more than the stock …"""
_RESERVE = 8
"""… unless less than this part of it is left (as for members: pool.py)."""
_TRIM_EVERY = 60.0
_TRIM_FROM = 64 << 20


@dataclass(frozen=True)
class Copied:
    """`size`: bytes the copy refers to, shared or not; `stopped`: seconds for which writers had to wait."""

    size: int
    stopped: float


class PoolDisks:
    """`Disks` of interface.py on a `DiskPool`. Its methods belong to one event loop; what blocks runs in threads of its own, which others can't clog.

    `stock` disks of `default_mib` MiB are kept ready (each takes 0.1 MB of memory and 2 MB of the pool). `pool_bytes` and `high_water` are `DiskPool`'s.
    """

    def __init__(self, places: Places, *, default_mib: int = 4096, stock: int = 64, pool_bytes: int | None = None, high_water: float = 0.95) -> None:
        self.pool = DiskPool(places, size=pool_bytes, high_water=high_water)
        self._images = places.disks
        self._mounts = places.run / "disks"
        self._default_mib = default_mib
        self._stock_size = stock
        self._stock: deque[str] = deque()
        self._attached: set[str] = set()
        self._turns = Turns()  # for each disk: none is unmounted while it is copied
        # Renames wait for nothing, so they never queue behind a file system being made, mounted or written out.
        self._quick = ThreadPoolExecutor(2, thread_name_prefix="disk-quick")
        self._slow = ThreadPoolExecutor(4, thread_name_prefix="disk")
        self._idle = ThreadPoolExecutor(1, thread_name_prefix="disk-idle", initializer=_be_nice)
        self._background: list[asyncio.Task[None]] = []
        self._attached_at = -_CALM
        self._wanted = asyncio.Event()
        self._closing = asyncio.Event()

    async def open(self, known: Collection[str] | None = None) -> None:
        """Mount the pool and find what an earlier server left: disks of sandboxes, mounted or not, and stock.

        `known` are the sandboxes that exist: every other disk is deleted. Without it, all are kept. Raises `SetupError` when there can't be disks here.
        """
        await self._in(self._slow, lambda: self._open(known))
        self._background = [asyncio.create_task(self._refill()), asyncio.create_task(self._trim_now_and_then())]
        self._wanted.set()

    async def close(self) -> None:
        """Stop working in the background. Disks, waiting ones too, stay mounted for the next server."""
        self._closing.set()
        self._wanted.set()
        for task in self._background:
            await task
        for threads in (self._quick, self._slow, self._idle):
            threads.shutdown()

    async def shutdown(self) -> None:
        """Unmount everything, after the sandboxes have ended. Their images stay; the stock is deleted."""
        await self.close()
        await asyncio.to_thread(self._shutdown)

    async def attach(self, id: str, mib: int, *, seed: Path | None = None) -> Path:
        """Create (or find) the disk of a sandbox and mount it; returns the directory that holds `u` (upper) and `w` (work). A new one is a copy of `seed`.

        From the stock it takes well under a millisecond, else some. A disk found keeps its size. Raises `Unavailable` when the pool is full.
        """
        async with self._turns.alone(id):
            if id in self._attached:
                return self._mounted_at(id)
            if mib == self._default_mib and seed is None and self._stock and not self._image(id).exists():
                waiting = self._stock.popleft()
                await self._in(self._quick, lambda: self._give(waiting, id))
            else:
                await self._in(self._slow, lambda: self._attach(id, mib, seed))
            self._attached.add(id)
            self._attached_at = time.monotonic()
            self._wanted.set()
            return self._mounted_at(id)

    async def detach(self, id: str) -> None:
        """Unmount a disk, written out, and keep it. Nothing happens if it isn't mounted."""
        async with self._turns.alone(id):
            self._attached.discard(id)
            await self._in(self._slow, lambda: self._unmount(id))

    async def remove(self, id: str) -> None:
        """Delete a disk, without writing out what isn't written. Nothing happens if there is none.

        Do it before unmounting the overlay above it: that would write everything out first.
        """
        async with self._turns.alone(id):
            self._attached.discard(id)
            await self._in(self._slow, lambda: self._remove(id))

    async def copy(self, id: str, target: Path) -> Copied:
        """A copy of a sandbox's disk as it is at one moment, whether or not it is in use. `target` is for the caller to remove when this fails.

        Everything written before the call is in it. Raises `NotFound` when there is no disk, `Unavailable` when the pool is full.
        """
        async with self._turns.alone(id):
            if not self._image(id).exists():
                raise NotFound(f"there is no disk of {id}")
            return await self._in(self._slow, lambda: self._copy(id, target))

    async def copy_still(self, id: str, target: Path) -> Copied:
        """As `copy`, of a mounted disk whose sandbox stands still, after `write_back`: for that no helper process need stand by, and little is left to be written out."""
        async with self._turns.alone(id):
            if id not in self._attached:
                raise NotFound(f"there is no disk of {id} in use")
            return await self._in(self._slow, lambda: self._copy_mounted(id, target, still=True))

    async def branch(self, id: str, source: Path) -> None:
        """Give a sandbox that has no disk yet a copy of `source`, which is itself a copy of one (`copy`): whole, so it isn't checked. It is mounted then."""
        async with self._turns.alone(id):
            await self._in(self._slow, lambda: self._branch(id, source))

    async def write_back(self, id: str) -> None:
        """Everything written so far is in the disk's image when this returns, whether or not that is safe."""
        await self._in(self._slow, lambda: self._write_back(id))

    async def write_out(self, id: str) -> None:
        """Everything written so far is safe when this returns, even from a power cut; what is written meanwhile may not be."""
        await self._in(self._slow, lambda: self._write_out(id))

    async def replace(self, id: str, source: Path) -> None:
        """Make the disk of a stopped sandbox a copy of `source`: wholly, or not at all."""
        async with self._turns.alone(id):
            if id in self._attached:
                raise InvalidState(f"the disk of {id} is in use", hint="stop the sandbox first")
            await self._in(self._slow, lambda: self._replace(id, source))

    def used(self, id: str) -> int:
        """Bytes in the files of a sandbox's disk. Raises `NotFound` when it has none."""
        try:
            return ext4.used(self._mounted_at(id)) if id in self._attached else self._image(id).stat().st_blocks * 512
        except FileNotFoundError:
            raise NotFound(f"there is no disk of {id}") from None

    def held(self, id: str) -> int:
        """Bytes that a copy of a disk would refer to, as far as it is known before: what its image has, or will have once all is written out. Raises `NotFound`."""
        used = self.used(id)
        return max(used, self._image(id).stat().st_blocks * 512)

    def _image(self, name: str) -> Path:
        return self._images / f"{name}.img"

    def _mounted_at(self, name: str) -> Path:
        return self._mounts / name / "m"

    async def _in(self, threads: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        """Do it in a thread. A caller that is cancelled leaves only when it is done: what comes next may be its undoing."""
        done = asyncio.get_running_loop().run_in_executor(threads, work)
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            await asyncio.wait([done])
            raise

    # Below: blocking, in threads

    def _open(self, known: Collection[str] | None) -> None:
        self.pool.open()
        self._mounts.mkdir(mode=0o700, parents=True, exist_ok=True)
        mounts.lead(self._mounts)
        mounted = {mount.target for mount in mounts.below(self._mounts)}
        images = {path.stem for path in self._images.glob("*.img")}
        places = {path.name for path in self._mounts.iterdir()}
        for name in sorted(images | places):
            whole = name in images and self._mounted_at(name) in mounted
            if name.startswith("stock-"):
                if whole and self._image(name).stat().st_size == self._default_mib << 20:
                    self._stock.append(name)
                else:
                    self._remove(name)
            elif name not in images or (known is not None and name not in known):
                self._remove(name)
            elif whole:
                # An earlier server that was killed in the middle of a copy may have left it frozen.
                capture.thaw(self._mounted_at(name))
                self._attached.add(name)
        for half_made in self._images.glob(".new-*"):
            half_made.unlink()

    def _shutdown(self) -> None:
        while self._stock:
            self._remove(self._stock.popleft())
        mounts.sweep(self._mounts)
        shutil.rmtree(self._mounts)
        self.pool.close()

    def _attach(self, name: str, mib: int, seed: Path | None = None) -> None:
        image, target = self._image(name), self._mounted_at(name)
        fresh = not image.exists()
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            if fresh and seed is not None:
                self._sow(seed, image, mib)
            elif fresh:
                self.pool.new_image(image, mib)
            ext4.mount(image, target, fresh=fresh)
        except BaseException:
            self._forget(name)
            if fresh:
                image.unlink(missing_ok=True)
            raise

    def _sow(self, seed: Path, image: Path, mib: int | None = None) -> None:
        """A checked copy of `seed` in place of `image`, of its size or another."""
        aside = image.with_name(f".new-{image.name}")
        try:
            self.pool.copy(seed, aside)
            ext4.resize(aside, mib or seed.stat().st_size >> 20)
            aside.rename(image)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise

    def _copy(self, id: str, target: Path) -> Copied:
        image = self._image(id)
        if id not in self._attached:
            # As in `ext4.mount`: not clean, it is checked first, or some last user of it lives on and it is copied as one in use.
            if not ext4.is_clean(image):
                self._attach(id, 0)
                try:
                    return self._copy_mounted(id, target)
                finally:
                    self._unmount(id)
            self.pool.copy(image, target)
            return Copied(target.stat().st_blocks * 512, 0.0)
        return self._copy_mounted(id, target)

    def _copy_mounted(self, id: str, target: Path, *, still: bool = False) -> Copied:
        taking = capture.capture_still if still else capture.capture
        stopped = taking(self._mounted_at(id), lambda: self.pool.copy(self._image(id), target))
        return Copied(target.stat().st_blocks * 512, stopped)

    def _branch(self, id: str, source: Path) -> None:
        aside = self._image(id).with_name(f".new-{id}.img")
        try:
            self.pool.copy(source, aside)
            ext4.declare_clean(aside)
            aside.rename(self._image(id))
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        target = self._mounted_at(id)
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        ext4.mount(self._image(id), target, fresh=True)
        self._attached.add(id)

    def _write_back(self, id: str) -> None:
        mounted = os.open(self._mounted_at(id), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            syscalls.syncfs(mounted)
        finally:
            os.close(mounted)

    def _write_out(self, id: str) -> None:
        self._write_back(id)
        # And out of the pool, which may be a file itself.
        syscalls.sync(self._image(id))

    def _replace(self, id: str, source: Path) -> None:
        # Whoever still has the old one (see `_unmount`) keeps a file without a name.
        self._sow(source, self._image(id))

    def _prepare(self, name: str) -> None:
        self._attach(name, self._default_mib)
        ext4.warm(self._mounted_at(name))

    def _give(self, waiting: str, id: str) -> None:
        # The image first: a crash in between leaves a sandbox's image that nobody knows, and a stock place without an image; `open` sweeps both.
        self._image(waiting).rename(self._image(id))
        (self._mounts / waiting).rename(self._mounts / id)

    def _unmount(self, name: str) -> None:
        target = self._mounted_at(name)
        if target.is_mount():
            try:
                syscalls.umount(target)
            except OSError:
                # Something still uses it. It ends with its last user; attached again before that, it is the same live file system (see `loop.attached`).
                syscalls.umount(target, lazy=True)
        self._forget(name)

    def _remove(self, name: str) -> None:
        self._image(name).unlink(missing_ok=True)
        target = self._mounted_at(name)
        if target.is_mount():
            ext4.discard(target)
            syscalls.umount(target, lazy=True)
        self._forget(name)

    def _forget(self, name: str) -> None:
        """Remove the empty directories of a mount point."""
        for directory in (self._mounted_at(name), self._mounts / name):
            try:
                directory.rmdir()
            except FileNotFoundError:
                pass

    # Below: background

    async def _refill(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                while len(self._stock) < self._stock_size and not self._closing.is_set():
                    calm_in = self._attached_at + _CALM - time.monotonic()
                    if calm_in > 0 and _RESERVE * len(self._stock) >= self._stock_size:
                        await self._unless_closing(calm_in)
                        continue
                    name = "stock-" + new_id("vo")[3:]
                    await self._in(self._idle, lambda name=name: self._prepare(name))
                    self._stock.append(name)
            except (CorralError, OSError) as error:
                # The next attach has it tried again, and tells its caller if it can't be helped.
                log.warning("no disk could be prepared", error=str(error))
            if self._closing.is_set():
                return

    async def _trim_now_and_then(self) -> None:
        """Deleted files stay allocated in an image until it is trimmed. Mounting with `discard` would do it at once and cost every unlink 60 µs."""
        while not self._closing.is_set():
            if not await self._unless_closing(_TRIM_EVERY):
                for name in list(self._attached):
                    await self._in(self._idle, lambda name=name: self._trim(name))

    async def _unless_closing(self, seconds: float) -> bool:
        """Let so many seconds pass, or end early and return True."""
        try:
            await asyncio.wait_for(self._closing.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def _trim(self, name: str) -> None:
        try:
            if self._image(name).stat().st_blocks * 512 - ext4.used(self._mounted_at(name)) > _TRIM_FROM:
                ext4.trim(self._mounted_at(name))
        except OSError as error:
            if self._image(name).exists() and name in self._attached:
                log.warning("a disk can't be trimmed", sandbox=name, error=str(error))


def _be_nice() -> None:
    """Let this thread wait for requests: niceness is a thread's own in Linux."""
    os.setpriority(os.PRIO_PROCESS, 0, 10)
