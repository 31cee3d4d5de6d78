"""What one image takes as it is unpacked, against what it may take and what the disk has."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from corral.errors import DiskFull, TooLarge

_ENTRY = 4096
"""Bytes that an entry takes besides its content, by its inode and in its directory."""
SPARE = 256 << 20
"""Bytes that stay free on the disk, for the server to live on."""
_SPARE_FILES = 50_000
LOOK_EVERY = 64 << 20
"""Bytes that are written without a look at the disk: 16,384 empty files."""
_TOLD = 20


@dataclass(frozen=True)
class Limits:
    """Of one image unpacked: bytes on the disk, and how many entries its layers have."""

    size: int = 64 << 30
    entries: int = 4_000_000


class Tally:
    """One image's, over all of its layers. `note` is told of what is left out, for a person."""

    def __init__(self, limits: Limits, note: Callable[[str], None]) -> None:
        self._limits = limits
        self._note = note
        self.size = 0
        self.entries = 0
        self._unlooked = LOOK_EVERY
        self._left_out = 0

    def entry(self, root: int, more: int) -> None:
        """One more, with `more` bytes besides its content, on the disk of the directory `root`. Raises `TooLarge`, `DiskFull`."""
        self.entries += 1
        if self.entries > self._limits.entries:
            raise TooLarge(f"the image has more than {self._limits.entries:,} files")
        self.take(root, _ENTRY + more)

    def take(self, root: int, size: int) -> None:
        """So many bytes, which are to be written next. Raises `TooLarge`, `DiskFull`."""
        self.size += size
        self._unlooked += size
        if self.size > self._limits.size:
            raise TooLarge(f"the files of the image take more than {self._limits.size >> 20:,} MiB")
        if self._unlooked >= LOOK_EVERY:
            self._unlooked = 0
            room = os.fstatvfs(root)
            # Some file systems have no number of files.
            if room.f_bavail * room.f_frsize < size + SPARE or (room.f_files and room.f_favail < _SPARE_FILES):
                raise DiskFull("the node has no room for the image", hint="`corral image prune` makes room")

    def leave_out(self, what: str) -> None:
        """Say so, of the first."""
        self._left_out += 1
        if self._left_out <= _TOLD:
            self._note(what)

    def end(self) -> None:
        """Say how many were left out without a word."""
        if self._left_out > _TOLD:
            self._note(f"{self._left_out - _TOLD:,} more are left out")

    def back(self, to: tuple[int, int]) -> None:
        """A layer is read anew: what it took, beyond this size and these entries, doesn't count."""
        self.size, self.entries = to
