"""A file system that a sandbox wrote, mounted to be looked at: by descriptors, beneath its root, through no link."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from corral.errors import Unsupported
from corral.node import syscalls

_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV)


@dataclass(frozen=True)
class Side:
    """One of the two: where it is mounted, and its layers' directories, from the lowest up."""

    root: Path
    layers: Sequence[Path]


class Tree:
    """A mounted side. What it opens is closed with `stack`."""

    def __init__(self, side: Side, own: Sequence[Path], stack: ExitStack) -> None:
        self.root = _open_root(side.root, stack)
        self._own = [_open_root(layer, stack) for layer in reversed(own)]

    def stat(self, path: bytes) -> os.stat_result | None:
        return _stat(self.root, path)

    def own(self, path: bytes) -> os.stat_result | None:
        """What the layers that only this side has say of a path, deletions included; None: nothing."""
        return next((found for layer in self._own if (found := _stat(layer, path)) is not None), None)

    def names(self, path: bytes) -> Iterator[bytes]:
        """What is in a directory, in no order. A directory may hold millions."""
        descriptor = syscalls.open_beneath(self.root, path or b".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    yield os.fsencode(entry.name)
        finally:
            os.close(descriptor)

    def link(self, path: bytes) -> bytes:
        descriptor = syscalls.open_beneath(self.root, path, os.O_PATH | os.O_NOFOLLOW)
        try:
            return os.readlink(b"", dir_fd=descriptor)
        finally:
            os.close(descriptor)

    def open(self, path: bytes) -> int:
        """A descriptor of a regular file, to be read and closed."""
        return syscalls.open_beneath(self.root, path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)


def _open_root(path: Path, stack: ExitStack) -> int:
    descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, descriptor)
    return descriptor


def _stat(root: int, path: bytes) -> os.stat_result | None:
    try:
        descriptor = syscalls.open_beneath(root, path or b".", os.O_PATH | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        if error.errno == errno.ENOSYS:
            raise Unsupported("this kernel can't open paths safely (openat2)", hint="Linux 5.6 or newer is needed to compare disks") from error
        raise
    try:
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)
