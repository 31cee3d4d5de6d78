"""Comparing moments of a sandbox's disk: snapshots, its image, and how it is now. Mounts what is needed, below <run>/views, and takes it down again."""

from __future__ import annotations

import asyncio
import errno
import secrets
import threading
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from corral.node import compare, ext4, mounts, rootfs, syscalls
from corral.node.compare import Side
from corral.node.disks import PoolDisks
from corral.node.interface import ImageSpec, Moment
from corral.node.snapshots import Snapshots
from corral.node.turns import Turns
from corral.places import Places
from corral.schema.snapshot import Diff

SETTLED = 2.0
"""Seconds between the last change of a file and a copy of its disk in which the kernel's clock can't tell another change."""
MERGEABLE = 100_000
"""Changes beyond which two lines are not merged."""
T = TypeVar("T")
_AT_ONCE = 4
"""Comparisons that read at the same time; each may take a minute and 64 MiB."""


class Differences:
    """A sandbox has one comparison at a time; others of it wait. The caller sees to it that the snapshots stay."""

    def __init__(self, places: Places, disks: PoolDisks, snapshots: Snapshots) -> None:
        self._views = places.run / "views"
        self._present = places.snapshots
        self._disks = disks
        self._snapshots = snapshots
        self._turns = Turns()
        self._reading = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="compare")

    def open(self) -> None:
        """Take down what a killed server left. Blocks."""
        self.sweep()
        self._views.mkdir(mode=0o700, parents=True)
        mounts.lead(self._views)

    def sweep(self) -> None:
        """Take everything down. Blocks."""
        if self._views.is_dir():
            mounts.sweep(self._views)
            for directory in sorted(self._views.rglob("*"), reverse=True):
                directory.rmdir()
            self._views.rmdir()

    async def compare(self, sandbox: str, image: ImageSpec, before: Moment, after: Moment, *, text: bool, limit: int) -> Diff:
        """What has to be done to the one to make it the other. Raises `ImageNotFound` for a snapshot that is gone."""
        async with self._turns.alone(sandbox):
            view = self._views / secrets.token_hex(6)
            async with self._layers(view, sandbox, image, before) as one, self._layers(view, sandbox, image, after) as two:
                settled = min(self._taken(before), self._taken(after)) - SETTLED
                given_up = threading.Event()
                return await self._read(partial(_compare, view, one, two, settled, text=text, limit=limit, given_up=given_up), given_up)

    @asynccontextmanager
    async def three(self, sandbox: str, image: ImageSpec, base: Moment, theirs: Moment, ours: Moment) -> AsyncGenerator[tuple[Side, tuple[Diff, Diff, Diff]]]:
        """What has changed from `base` to the two others, and between those; and the side of `theirs`, to be read until the end of the block.

        Raises `ImageNotFound` for a snapshot that is gone.
        """
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._turns.alone(sandbox))
            view = self._views / secrets.token_hex(6)
            moments = {"base": base, "theirs": theirs, "ours": ours}
            layers = {name: await stack.enter_async_context(self._layers(view, sandbox, image, moment)) for name, moment in moments.items()}
            settled = min(self._taken(moment) for moment in moments.values()) - SETTLED
            given_up = threading.Event()

            async def take_down() -> None:
                given_up.set()
                await asyncio.get_running_loop().run_in_executor(None, _take_down, view, tuple(layers))

            stack.push_async_callback(take_down)
            sides = await self._read(partial(_put_up, view, layers), given_up)
            pairs = (("base", "theirs"), ("base", "ours"), ("theirs", "ours"))
            diffs: list[Diff] = []
            for one, two in pairs:
                work = partial(compare.compare, sides[one], sides[two], settled=settled, text=False, limit=MERGEABLE, given_up=given_up)
                diffs.append(await self._read(work, given_up))
            yield sides["theirs"], (diffs[0], diffs[1], diffs[2])

    async def _read(self, work: Callable[[], T], given_up: threading.Event) -> T:
        """In a thread. A caller that is cancelled leaves only when it has ended: it reads what is taken down next."""
        done = asyncio.get_running_loop().run_in_executor(self._reading, work)
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            given_up.set()
            await asyncio.wait([done])
            raise

    def _taken(self, moment: Moment) -> float:
        return time.time() if moment.snapshot is None else self._snapshots.get(moment.snapshot).created

    @asynccontextmanager
    async def _layers(self, view: Path, sandbox: str, image: ImageSpec, moment: Moment) -> AsyncGenerator[Sequence[Path]]:
        if moment.image or moment.snapshot is not None:
            spec = image if moment.snapshot is None else self._snapshots.get(moment.snapshot).spec
            yield (*spec.layers, *([] if spec.seed is None else [spec.seed]))
            return
        # A copy of this moment, for as long as it is looked at: what changes under the eyes can't be compared.
        copy, mounted = self._present / f".new-{view.name}.img", view / "present"
        try:
            await self._disks.copy(sandbox, copy)
            await asyncio.to_thread(_mount, copy, mounted)
            yield (*image.layers, mounted / ext4.UPPER)
        finally:
            await asyncio.shield(asyncio.to_thread(_remove, copy, mounted))


def _mount(image: Path, target: Path) -> None:
    target.mkdir(mode=0o700, parents=True)
    ext4.mount(image, target, read_only=True)


def _remove(image: Path, target: Path) -> None:
    _unmount(target)
    if target.parent.is_dir():
        target.parent.rmdir()
    image.unlink(missing_ok=True)


def _compare(view: Path, before: Sequence[Path], after: Sequence[Path], settled: float, *, text: bool, limit: int, given_up: threading.Event) -> Diff:
    layers = {"before": before, "after": after}
    try:
        sides = _put_up(view, layers)
        return compare.compare(sides["before"], sides["after"], settled=settled, text=text, limit=limit, given_up=given_up)
    finally:
        _take_down(view, tuple(layers))


def _put_up(view: Path, layers: Mapping[str, Sequence[Path]]) -> dict[str, Side]:
    sides: dict[str, Side] = {}
    for name, directories in layers.items():
        root = view / name
        root.mkdir(mode=0o700, parents=True)
        sides[name] = Side(root, rootfs.mount_view(root, directories))
    return sides


def _take_down(view: Path, names: Sequence[str]) -> None:
    for name in names:
        _unmount(view / name)
    if view.is_dir() and not any(view.iterdir()):
        view.rmdir()


def _unmount(target: Path) -> None:
    """Unmount what is there, if anything is, and remove the directory. `Path.is_mount` does not see a bind within one file system."""
    try:
        syscalls.umount(target, lazy=True)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT):
            raise
    if target.is_dir():
        target.rmdir()
