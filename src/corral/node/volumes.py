"""Volumes: storage that sandboxes share and that outlives them. One ext4 image each, mounted once on the host and bound into every sandbox that has it.

    <pool>/volumes/vo-….img          the image; its size is a hard limit. With a journal and barriers: what a sandbox synced is there after a power cut
    <run>/volumes/vo-…/m             where it is mounted while a sandbox has it; its files are in `u`
    <member>/vol/<name>              the bind that one sandbox sees, read-only from birth where it is to be

Several sandboxes may write one at once: for the host they are processes on one file system.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path

import structlog

from corral.errors import NotFound
from corral.node import ext4, mounts, syscalls
from corral.node.disk_pool import DiskPool
from corral.node.interface import VolumeUse
from corral.node.turns import Turns
from corral.places import Places

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

    async def remove(self, id: str) -> None:
        """Delete it with everything in it. Nothing happens if there is none. A sandbox that is just ending may have it still: then it goes with that."""
        async with self._turns.alone(id):
            await asyncio.to_thread(self._image(id).unlink, missing_ok=True)
            if not self._users.get(id):
                await asyncio.to_thread(self._unmount, id)

    async def attach(self, sandbox: str, uses: Sequence[VolumeUse], place: Path) -> list[str]:
        """Show volumes below `place`, a directory that a sandbox has as /vol; returns their names in it, in the order of `uses`. Raises `NotFound`."""
        names: list[str] = []
        for number, use in enumerate(uses):
            async with self._turns.alone(use.id):
                self._users.setdefault(use.id, set()).add(sandbox)
                names.append(f"v{number}")
                await asyncio.to_thread(self._attach, use, place / names[-1])
        return names

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
        for half_made in self._images.glob(".new-*"):
            log.info("removing a volume that is half made", file=half_made.name)
            half_made.unlink()

    def _mounted(self) -> list[str]:
        return [path.name for path in self._mounts.iterdir()]

    def _create(self, id: str, mib: int) -> None:
        self._pool.new_image(self._image(id), mib, volume=True)

    def _attach(self, use: VolumeUse, target: Path) -> None:
        mounted = self._mounted_at(use.id)
        if not mounted.is_mount():
            if not self._image(use.id).exists():
                raise NotFound(f"there is no volume {use.id}", hint="`corral volume ls` lists those there are")
            mounted.mkdir(mode=0o700, parents=True, exist_ok=True)
            ext4.mount(self._image(use.id), mounted, durable=True)
        target.mkdir()
        syscalls.bind(mounted / ext4.UPPER, target, read_only=use.read_only)

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
