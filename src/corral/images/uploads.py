"""Files that were uploaded for builds and imports, found by their digest.

<home>/uploads/<project>/<digest>     whole and checked: they appear by rename; their time of modification is that of their last use
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from pathlib import Path

from corral.errors import InvalidArgument, NotFound, TooLarge
from corral.images.tree import Tree
from corral.places import Places

LARGEST = 64 << 30
"""Bytes of one upload."""
_TREES = 8
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Uploads:
    """One installation's."""

    def __init__(self, places: Places) -> None:
        self._directory = places.uploads
        self._trees: OrderedDict[Path, Tree] = OrderedDict()

    def sweep(self) -> None:
        """Remove what an earlier server did not receive whole."""
        for left in self._directory.glob("*/.new-*"):
            left.unlink()

    def has(self, project: str, digest: str) -> bool:
        return self._path(project, digest).exists()

    def path(self, project: str, digest: str) -> Path:
        """An upload, used now. Raises `NotFound`."""
        path = self._path(project, digest)
        try:
            os.utime(path)
        except FileNotFoundError:
            raise NotFound(f"there is no upload {digest}", hint="upload it again: PUT /v1/images/uploads/{digest}", details={"missing": [digest]}) from None
        return path

    async def add(self, project: str, digest: str, pieces: AsyncIterator[bytes]) -> int:
        """Receive one; returns its size in bytes. Raises `InvalidArgument` when it is not what its digest says."""
        path = self._path(project, digest)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        aside = path.with_name(f".new-{digest}-{time.monotonic_ns()}")
        found, size = hashlib.sha256(), 0
        try:
            with aside.open("xb") as file:
                async for piece in pieces:
                    size += len(piece)
                    if size > LARGEST:
                        raise TooLarge(f"an upload can't be larger than {LARGEST >> 30} GiB")
                    await asyncio.to_thread(_take, file.write, found.update, piece)
            if found.hexdigest() != digest:
                raise InvalidArgument(f"the upload's digest is {found.hexdigest()}, not {digest}", hint="it was changed while it was read: try again")
            aside.rename(path)
        finally:
            aside.unlink(missing_ok=True)
        return size

    async def tree(self, project: str, digest: str) -> Tree:
        """Its index. Raises `NotFound`, `InvalidArgument`."""
        path = self.path(project, digest)
        if (known := self._trees.get(path)) is not None:
            self._trees.move_to_end(path)
            return known
        found = self._trees[path] = await asyncio.to_thread(Tree.read, path)
        while len(self._trees) > _TREES:
            self._trees.popitem(last=False)
        return found

    def usage(self, project: str) -> list[tuple[Path, int, float]]:
        """Path, size and last use of each, the longest unused first."""
        found = [(path, path.stat()) for path in (self._directory / project).glob("*") if not path.name.startswith(".")]
        return sorted(((path, status.st_size, status.st_mtime) for path, status in found), key=lambda one: one[2])

    def prune(self, project: str, *, older_than: float | None, keep_size: int | None, now: float) -> list[int]:
        """Remove those unused for so many seconds, and the longest unused until the rest is small enough; returns the sizes of what went."""
        found = self.usage(project)
        left, gone = sum(size for _, size, _ in found), list[int]()
        for path, size, used in found:
            if (older_than is None or now - used >= older_than) and (keep_size is None or left > keep_size):
                self.remove(path)
                gone.append(size)
                left -= size
        return gone

    def remove(self, path: Path) -> None:
        self._trees.pop(path, None)
        path.unlink(missing_ok=True)

    def _path(self, project: str, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise InvalidArgument(f"{digest[:80]!r} is no SHA-256 in hexadecimal digits")
        return self._directory / project / digest


def _take(write: object, update: object, piece: bytes) -> None:
    assert callable(write)
    assert callable(update)
    write(piece)
    update(piece)
