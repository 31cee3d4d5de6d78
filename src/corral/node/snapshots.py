"""The snapshots of one node: disks kept as they were at one moment, which are images for new sandboxes.

    <pool>/snapshots/sn-….img     the disk; shares its blocks with the disk it was taken of
    <home>/memory/sn-…/           its memory, if it has one (`memory`, `warm`)
    <pool>/snapshots/sn-….json    what it is. Written last, so that an image without it is half made, and removed first

A snapshot's files are those of its layers below and of its own disk above. When there are many layers already, its disk is no further one but the
seed of new disks: they cost a check of the file system instead, and nothing gets deeper.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import structlog

from corral.errors import DiskFull, ImageNotFound, NotFound, SetupError
from corral.node import rootfs, syscalls
from corral.node.disks import Copied, PoolDisks
from corral.node.interface import ImageSpec, Warm
from corral.node.memory import Memories
from corral.places import Places

VERSION = 1
"""Of the documents. A greater one is refused: it is a later Corral's."""
DEEPEST = 16
"""Layers of a snapshot; with more, its disk is a seed. Each layer makes looking up a file that is nowhere slower."""

Take = Callable[[Path], Awaitable[tuple[Copied, Warm]]]
"""Makes that file a copy of a disk, and keeps its sandbox's memory."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class StoredSnapshot:
    """A snapshot as the node knows it. `disk` is the size of the sandbox's disk in MiB, `size` the bytes its own disk refers to, `stopped` for how many seconds
    the sandbox's writers had to wait, which is known only just after it was made."""

    spec: ImageSpec
    sandbox: str
    parent: str
    disk: int
    size: int
    created: float
    stopped: float | None = None


class Snapshots:
    """Made, found and removed by id. Which of them are still needed is known to the caller."""

    def __init__(self, places: Places, disks: PoolDisks, memories: Memories) -> None:
        self._directory = places.snapshots
        self._disks = disks
        self._memories = memories
        self._known: dict[str, StoredSnapshot] = {}

    async def open(self) -> None:
        """Find the snapshots there are, and remove those half made or half removed. The disks must be open."""
        self._known = await asyncio.to_thread(self._read_all)

    def list(self) -> list[StoredSnapshot]:
        return list(self._known.values())

    def warm(self) -> list[str]:
        """Ids of those with memory."""
        return [id for id, stored in self._known.items() if stored.spec.warm is not None]

    def get(self, id: str) -> StoredSnapshot:
        """Raises `ImageNotFound`."""
        if (found := self._known.get(id)) is None:
            raise ImageNotFound(f"there is no snapshot {id}", hint="`corral snapshot ls` lists those there are", details={"image": id})
        return found

    def image_of(self, id: str) -> Path:
        """Its disk."""
        return self._directory / f"{id}.img"

    async def make(
        self, id: str, sandbox: str, image: ImageSpec, *, disk: int, user: str | None, workdir: str | None, take: Take | None = None
    ) -> StoredSnapshot:
        """Take a snapshot of the disk (of `disk` MiB) of a sandbox of `image`, running or stopped. `user` and `workdir` become its defaults.

        It is safe on disk when this returns; when it fails nothing is left of it. `take` copies the disk, and keeps the memory of that moment too.
        """
        target = self.image_of(id)
        below = image.layers
        aside = target.with_name(f".new-{target.name}")
        try:
            copied, warm = (await self._disks.copy(sandbox, aside), None) if take is None else await take(aside)
            flat = len(below) >= DEEPEST
            stored = StoredSnapshot(
                spec=ImageSpec(
                    id=id,
                    name=None,
                    layers=below if flat else (*below, target),
                    env=image.env,
                    user=user,
                    workdir=workdir,
                    command=image.command,
                    seed=target if flat else None,
                    warm=warm,
                ),
                sandbox=sandbox,
                parent=image.id,
                disk=disk,
                size=copied.size,
                created=time.time(),
                stopped=copied.stopped,
            )
            await asyncio.to_thread(self._commit, aside, target, stored)
        except BaseException as error:
            await asyncio.shield(asyncio.to_thread(self._delete, id))
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise DiskFull("the node's disk pool is full: the snapshot was not made", hint="delete snapshots or sandboxes, or add disk") from error
            raise
        self._known[id] = stored
        return stored

    async def remove(self, id: str) -> None:
        """Delete it. Nothing happens if there is none. Sandboxes that run on it go on; none may be started on it again."""
        if self._known.pop(id, None) is not None:
            await asyncio.to_thread(self._delete, id)
            await asyncio.to_thread(self._memories.drop, id)

    async def ready(self, spec: ImageSpec) -> None:
        """Mount what a sandbox of this image needs, so that its start doesn't have to."""
        images = [layer for layer in spec.layers if layer.parent == self._directory]
        if images:
            await asyncio.to_thread(rootfs.mount_layers, images)

    def estimate(self, sandbox: str) -> int:
        """Bytes that a snapshot of this sandbox would refer to if it wrote nothing more. Raises `NotFound`."""
        return self._disks.held(sandbox)

    def unshared(self, id: str) -> int:
        """Bytes that would be free without it, as far as the pool tells. Raises `NotFound`."""
        try:
            with self.image_of(id).open("rb") as image:
                return sum(extent.length for extent in syscalls.extents(image.fileno()) if not extent.shared)
        except FileNotFoundError:
            raise NotFound(f"there is no snapshot {id}") from None

    # Below: blocking, in threads

    def _read_all(self) -> dict[str, StoredSnapshot]:
        found = {path.stem: self._read(path) for path in self._directory.glob("sn-*.json")}
        for path in (*self._directory.glob(".new-*"), *self._directory.glob("sn-*.img")):
            if path.stem not in found:
                log.info("removing a snapshot that is half made", file=path.name)
                path.unlink()
                rootfs.unmount_layer(path)
        whole = {id: stored for id, stored in found.items() if self.image_of(id).exists()}
        for id in found.keys() - whole.keys():
            log.error("a snapshot has lost its disk", snapshot=id)
            self._delete(id)
        return whole

    def _read(self, path: Path) -> StoredSnapshot:
        document = json.loads(path.read_bytes())
        if document.get("version") != VERSION:
            raise SetupError(
                f"the snapshot {path} is of format {document.get('version')}, this server knows {VERSION}", hint="start the version of Corral that wrote it"
            )
        return _decode(document)

    def _commit(self, aside: Path, image: Path, stored: StoredSnapshot) -> None:
        aside.rename(image)
        document = image.with_suffix(".json")
        fresh = image.with_name(f".new-{document.name}")
        with fresh.open("w") as file:
            json.dump(_encode(stored), file, indent=2)
            file.flush()
            # The image goes with it: the pool's log is in the order of the changes.
            os.fsync(file.fileno())
        fresh.rename(document)
        syscalls.sync(self._directory)

    def _delete(self, id: str) -> None:
        image = self.image_of(id)
        image.with_suffix(".json").unlink(missing_ok=True)
        # The image before its mount: whoever is about to mount it finds it gone, and leaves none behind.
        for path in (image, image.with_name(f".new-{image.name}"), image.with_name(f".new-{id}.json")):
            path.unlink(missing_ok=True)
        rootfs.unmount_layer(image)


def _encode(stored: StoredSnapshot) -> dict[str, Any]:
    spec = stored.spec
    return {
        "version": VERSION,
        "id": spec.id,
        "sandbox": stored.sandbox,
        "parent": stored.parent,
        "layers": [str(layer) for layer in spec.layers],
        "seed": None if spec.seed is None else str(spec.seed),
        "warm": None if spec.warm is None else asdict(spec.warm),
        "env": dict(spec.env),
        "user": spec.user,
        "workdir": spec.workdir,
        "command": spec.command,
        "disk": stored.disk,
        "size": stored.size,
        "created": stored.created,
    }


def _decode(document: Mapping[str, Any]) -> StoredSnapshot:
    # Those without memory were written without a word about it once.
    command, seed, warm = document["command"], document["seed"], document.get("warm")
    spec = ImageSpec(
        id=document["id"],
        name=None,
        layers=tuple(Path(layer) for layer in document["layers"]),
        env=dict(document["env"]),
        user=document["user"],
        workdir=document["workdir"],
        command=None if command is None else tuple(command),
        seed=None if seed is None else Path(seed),
        warm=None if warm is None else Warm(**warm),
    )
    return StoredSnapshot(spec, document["sandbox"], document["parent"], document["disk"], document["size"], document["created"])
