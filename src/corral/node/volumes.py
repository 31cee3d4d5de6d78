"""Volumes: storage that sandboxes share and that outlives them. One ext4 image each, mounted once on the host and bound into every sandbox that has it.

    <pool>/volumes/vo-….img          the image; its size is a hard limit. With a journal and barriers: what a sandbox synced is there after a power cut
    <run>/volumes/vo-…/m             where it is mounted while a sandbox has it; its files are in `u`
    <member>/vol/<name>              the bind that one sandbox sees, read-only from birth where it is to be; its name follows from what it shows and where,
                                     so that a later server finds it, and a memory that is restored

Several sandboxes may write one at once: for the host they are processes on one file system.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from corral.errors import FileNotFound, NotFound
from corral.node import capture, ext4, mounts, syscalls
from corral.node.disk_pool import DiskPool
from corral.node.interface import VolumeUse
from corral.node.turns import Turns
from corral.node.volume_door import VolumeDoor
from corral.node.volume_files import VolumeFiles
from corral.places import Places
from corral.threads import in_thread

log = structlog.get_logger(__name__)


class Volumes:
    """Made, removed and attached by id. Which there are is known to the caller."""

    def __init__(self, places: Places, pool: DiskPool) -> None:
        self._images = places.volumes
        self._mounts = places.run / "volumes"
        self._pool = pool
        self._users: dict[str, set[str]] = {}
        self._turns = Turns()

    async def open(self) -> None:
        """The pool must be open."""
        await asyncio.to_thread(self._open)

    def list(self) -> list[str]:
        """Ids of those there are."""
        return [path.stem for path in self._images.glob("vo-*.img")]

    async def create(self, id: str, mib: int) -> None:
        """An empty volume of that size. Raises `Unavailable` when the pool is full."""
        async with self._turns.alone(id):
            await asyncio.to_thread(self._create, id, mib)

    async def copy(self, id: str, source: str) -> None:
        """A new volume with what is in another one at this moment; who writes that waits some milliseconds. Raises `NotFound`, `Unavailable` when the pool is full."""
        async with self._turns.alone(source):
            await asyncio.to_thread(self._copy, id, source)

    async def remove(self, id: str) -> None:
        """Delete it with everything in it. Nothing happens if there is none. A sandbox that is just ending may have it still: then it goes with that."""
        async with self._turns.alone(id):
            await asyncio.to_thread(self._image(id).unlink, missing_ok=True)
            if not self._users.get(id):
                await asyncio.to_thread(self._unmount, id)

    async def attach(self, sandbox: str, uses: Sequence[VolumeUse], place: Path) -> list[str]:
        """Show volumes below `place`, a directory that a sandbox has as /vol; returns their names in it, in the order of `uses`. Raises `NotFound`."""
        for use in uses:
            async with self._turns.alone(use.id):
                self._users.setdefault(use.id, set()).add(sandbox)
                await asyncio.to_thread(self._attach, use, place / name_of(use))
        return [name_of(use) for use in uses]

    async def detach(self, sandbox: str, use: VolumeUse, place: Path, *, left: Sequence[VolumeUse]) -> None:
        """Show it no longer; what has files of it open may use them on. `left`: what the sandbox has besides. Nothing happens if it isn't shown."""
        async with self._turns.alone(use.id):
            await asyncio.to_thread(_hide, place / name_of(use))
            if all(other.id != use.id for other in left):
                users = self._users.get(use.id, set())
                users.discard(sandbox)
                if not users:
                    self._users.pop(use.id, None)
                    await asyncio.to_thread(self._unmount, use.id)

    @asynccontextmanager
    async def opened(self, id: str) -> AsyncGenerator[VolumeFiles]:
        """Its files, for who has no sandbox with it. Raises `NotFound`."""
        visitor = f"files:{secrets.token_hex(8)}"
        async with self._turns.alone(id):
            self._users.setdefault(id, set()).add(visitor)
            try:
                await in_thread(self._mount, id)
            except BaseException:
                self._users[id].discard(visitor)
                if not self._users[id]:
                    del self._users[id]
                    await in_thread(self._unmount, id)
                raise
        try:
            with VolumeFiles(self._mounted_at(id) / ext4.UPPER) as files:
                yield files
        finally:
            await asyncio.shield(self.release(visitor))

    def files(self, id: str) -> VolumeDoor:
        """Its files as those of a sandbox are shown."""
        return VolumeDoor(lambda: self.opened(id))

    def adopt(self, sandbox: str, uses: Sequence[VolumeUse]) -> None:
        """A sandbox of an earlier server has these."""
        for use in uses:
            self._users.setdefault(use.id, set()).add(sandbox)

    async def release(self, sandbox: str) -> None:
        """A sandbox has ended: what nobody else has is unmounted, and so written out."""
        had = [id for id, users in self._users.items() if sandbox in users]
        # All at once: while the first is written out the sandbox may be started again, and have them anew.
        for id in had:
            self._users[id].discard(sandbox)
        for id in had:
            async with self._turns.alone(id):
                if not self._users.get(id):
                    self._users.pop(id, None)
                    await asyncio.to_thread(self._unmount, id)

    async def settle(self) -> None:
        """After all adoptions: unmount what a killed server left mounted and nobody has."""
        for id in await asyncio.to_thread(self._mounted):
            async with self._turns.alone(id):
                if not self._users.get(id):
                    await asyncio.to_thread(self._unmount, id)

    async def shutdown(self) -> None:
        """Unmount all, after the sandboxes have ended."""
        await asyncio.to_thread(self._shutdown)

    def _image(self, id: str) -> Path:
        return self._images / f"{id}.img"

    def _mounted_at(self, id: str) -> Path:
        return self._mounts / id / "m"

    # Below: blocking, in threads

    def _open(self) -> None:
        self._mounts.mkdir(mode=0o700, parents=True, exist_ok=True)
        mounts.lead(self._mounts)
        for half_made in self._images.glob(".new-*"):
            log.info("removing a volume that is half made", file=half_made.name)
            half_made.unlink()

    def _mounted(self) -> list[str]:
        return [path.name for path in self._mounts.iterdir()]

    def _create(self, id: str, mib: int) -> None:
        self._pool.new_image(self._image(id), mib, volume=True)
        for path in (self._image(id), self._images):
            syscalls.sync(path)

    def _copy(self, id: str, source: str) -> None:
        original, target, mounted = self._image(source), self._image(id), self._mounted_at(source)
        if not original.exists():
            raise NotFound(f"there is no volume {source}", hint="`corral volume ls` lists those there are")
        aside = target.with_name(f".new-{target.name}")
        try:
            if mounted.is_mount():
                capture.capture(mounted, lambda: self._pool.copy(original, aside))
            else:
                self._pool.copy(original, aside)
            syscalls.sync(aside)
            aside.rename(target)
            # Its name too: what a power cut leaves under the other one is half made.
            syscalls.sync(self._images)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise

    def _attach(self, use: VolumeUse, target: Path) -> None:
        directory = _directory(self._mount(use.id) / ext4.UPPER, use)
        try:
            target.mkdir()
            try:
                syscalls.bind(f"/proc/self/fd/{directory}", target, read_only=use.read_only)
            except BaseException:
                target.rmdir()
                raise
        finally:
            os.close(directory)

    def _mount(self, id: str) -> Path:
        mounted = self._mounted_at(id)
        if not mounted.is_mount():
            if not self._image(id).exists():
                raise NotFound(f"there is no volume {id}", hint="`corral volume ls` lists those there are")
            mounted.mkdir(mode=0o700, parents=True, exist_ok=True)
            ext4.mount(self._image(id), mounted, durable=True)
        return mounted

    def _unmount(self, id: str) -> None:
        target = self._mounted_at(id)
        if target.is_mount():
            try:
                syscalls.umount(target)
            except OSError:
                # A sandbox that has just ended still has it: it ends with its last user, and is the same live file system if attached before.
                syscalls.umount(target, lazy=True)
        if target.is_dir():
            target.rmdir()
            target.parent.rmdir()

    def _shutdown(self) -> None:
        if self._mounts.is_dir():
            mounts.sweep(self._mounts)
            shutil.rmtree(self._mounts)


def name_of(use: VolumeUse) -> str:
    """Under which a sandbox is shown it."""
    if use.name:
        return use.name
    what = "\0".join((use.id, use.path, use.sub_path, str(use.read_only)))
    return "v" + hashlib.sha256(os.fsencode(what)).hexdigest()[:16]


def _directory(root: Path, use: VolumeUse) -> int:
    """A descriptor of what is to be shown of a volume. Through no link: sandboxes wrote what is on the way. Directories that are missing are made unless it is read-only."""
    found = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for part in use.sub_path.split("/") if use.sub_path else ():
        try:
            inner = _inner(found, part, make=not use.read_only)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV):
                raise
            raise FileNotFound(f"the volume {use.id} has no directory {use.sub_path!r}", hint="it is made when it is attached to be written") from None
        finally:
            os.close(found)
        found = inner
    return found


def _inner(directory: int, name: str, *, make: bool) -> int:
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
    try:
        return syscalls.open_beneath(directory, os.fsencode(name), flags)
    except FileNotFoundError:
        if not make:
            raise
    try:
        os.mkdir(name, dir_fd=directory)
    except FileExistsError:
        return syscalls.open_beneath(directory, os.fsencode(name), flags)
    # Every user may write it, as the volume's root.
    made = syscalls.open_beneath(directory, os.fsencode(name), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    os.fchmod(made, 0o777)
    return made


def _hide(target: Path) -> None:
    try:
        syscalls.umount(target, lazy=True)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT):
            raise
    if target.is_dir():
        target.rmdir()
