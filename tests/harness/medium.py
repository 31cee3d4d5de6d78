"""A medium of a test's own: an ext4 in a file, mounted where a home is to be, whose raw bytes can be looked through after it was unmounted."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Collection, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from corral import spawn
from corral.node import loop, syscalls
from harness import homes

_SIZE = 12 << 30
_PIECE = 16 << 20


class Medium:
    """`path` is where it is mounted, empty at first but for what every ext4 has."""

    def __init__(self, path: Path, image: int, cut: IO[bytes]) -> None:
        self.path = path
        self._image = image
        self._cut = cut

    @property
    def _name(self) -> Path:
        return Path(f"/proc/{os.getpid()}/fd/{self._image}")

    def mount(self) -> None:
        with loop.attached(self._name, fresh=True) as device:
            syscalls.mount(device.path, self.path, "ext4")

    def unmount(self) -> None:
        """Written out, and in nobody's memory any more."""
        syscalls.umount(self.path)

    def cut(self) -> None:
        """Keep what is on it at this moment: what its file system has written, and not what that still has in memory."""
        self._cut.truncate(0)
        self._cut.truncate(_SIZE)
        at = 0
        while True:
            try:
                at = os.lseek(self._image, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                return
            end = os.lseek(self._image, at, os.SEEK_HOLE)
            while at < end:
                at += os.copy_file_range(self._image, self._cut.fileno(), end - at, at, at)

    def after_cut(self) -> None:
        """Have on it what it had then, and lose what came later. Nobody may use it."""
        self.unmount()
        self._image = self._cut.fileno()
        self.mount()

    def find(self, words: Collection[bytes]) -> set[bytes]:
        """Those that are anywhere on it. Holes are not read."""
        found: set[bytes] = set()
        overlap = max(map(len, words)) - 1
        at = 0
        while True:
            try:
                at = os.lseek(self._image, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                return found
            end = os.lseek(self._image, at, os.SEEK_HOLE)
            while at < end:
                piece = os.pread(self._image, _PIECE + overlap, at)
                found |= {word for word in words if word in piece}
                at += min(_PIECE, end - at)


@contextmanager
def medium(*, encrypts: bool = True) -> Generator[Medium]:
    """Nothing of it is left when the block ends, nor when the run is killed: its file has no name."""
    path = homes.make("medium")
    with tempfile.TemporaryFile(dir=homes.WHERE) as file, tempfile.TemporaryFile(dir=homes.WHERE) as cut:
        file.truncate(_SIZE)
        made = Medium(path, file.fileno(), cut)
        spawn.run(["mkfs.ext4", "-q", "-F", "-O", "encrypt" if encrypts else "^encrypt", f"/proc/{os.getpid()}/fd/{file.fileno()}"], timeout=60).check()
        made.mount()
        try:
            yield made
        finally:
            if path.is_mount():
                made.unmount()
            shutil.rmtree(path)
