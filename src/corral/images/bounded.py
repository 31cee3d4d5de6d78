"""A file on the host whose content is a stranger's: it takes no more than it may, and leaves the disk room for the server to live on."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

from corral.errors import DiskFull, TooLarge
from corral.images.oci.tally import LOOK_EVERY, SPARE


class Bounded:
    """Written from the beginning. `most`: bytes."""

    def __init__(self, path: Path, most: int) -> None:
        self._file = path.open("wb")
        self._most = most
        self._size = 0
        self._unlooked = LOOK_EVERY

    def __enter__(self) -> Bounded:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._file.close()

    def write(self, data: bytes, /) -> None:
        """Raises `TooLarge`, `DiskFull`."""
        self._size += len(data)
        self._unlooked += len(data)
        if self._size > self._most:
            raise TooLarge(f"the files take more than the {self._most >> 20:,} MiB that a build may write", hint="give the build more disk, or copy less")
        if self._unlooked >= LOOK_EVERY:
            self._unlooked = 0
            room = os.fstatvfs(self._file.fileno())
            if room.f_bavail * room.f_frsize < LOOK_EVERY + SPARE:
                raise DiskFull("the node has no room for the files of the step", hint="`corral image prune` makes room")
        self._file.write(data)
