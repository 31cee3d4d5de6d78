"""Words that clients attach to files: extended attributes `user.e2b.…`, set and read from the host's side, since gVisor 20240729 has none for its guests.

They are in the sandbox's disk, so they go where its files go: into snapshots, and with a file that is renamed. A guest of a newer gVisor sees them, and may set them itself.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from corral.errors import DiskFull, InvalidArgument, Unsupported
from corral.node import syscalls

_PREFIX = "user.e2b."
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV})
"""There is no such file on the disk: it is on a file system of the guest's own, or behind a link."""
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.E2BIG, errno.ERANGE})


def read(root: Path, paths: Iterable[bytes]) -> list[dict[str, str]]:
    """What is attached to each of these files below the mounted root of a sandbox; nothing, where nothing can be."""
    with _opened(root) as top:
        return [_read(top, path) for path in paths]


def write(root: Path, path: bytes, values: Mapping[str, str]) -> None:
    """Attach these words, and no others. The file must have been written by this sandbox.

    Raises `Unsupported` where there is no such file on the disk, `DiskFull` when they don't fit (4 KiB in all), `InvalidArgument` for a name that can't be one.
    """
    with _opened(root) as top:
        try:
            with _file(top, path) as file:
                for name in _names(file):
                    if name.removeprefix(_PREFIX) not in values:
                        os.removexattr(file, name)
                for name, value in values.items():
                    os.setxattr(file, _PREFIX + name, value.encode())
        except OSError as error:
            if not values and error.errno in _GONE:
                return
            where = path.decode(errors="replace")
            if error.errno in _GONE:
                raise Unsupported(
                    f"`{where}` is not on the sandbox's disk, so nothing can be attached to it", hint="write it elsewhere than below /tmp"
                ) from None
            if error.errno in _FULL:
                raise DiskFull(f"metadata of `{where}`: it does not fit", hint="all of a file's metadata has to fit into 4 KiB") from None
            raise InvalidArgument(f"metadata of `{where}`: {error.strerror}") from None


def _read(top: int, path: bytes) -> dict[str, str]:
    found: dict[str, str] = {}
    with suppress(OSError), _file(top, path) as file:
        for name in _names(file):
            found[name.removeprefix(_PREFIX)] = os.getxattr(file, name).decode(errors="replace")
    return found


def _names(file: str) -> list[str]:
    return [name for name in os.listxattr(file) if name.startswith(_PREFIX)]


@contextmanager
def _opened(root: Path) -> Generator[int]:
    descriptor = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _file(top: int, path: bytes) -> Generator[str]:
    """A name for the file itself, whatever the guest puts into its place meanwhile. Only of files and directories, which user attributes are for."""
    descriptor = syscalls.open_beneath(top, path.lstrip(b"/") or b".", os.O_PATH | os.O_NOFOLLOW)
    try:
        if not stat.S_ISREG(mode := os.fstat(descriptor).st_mode) and not stat.S_ISDIR(mode):
            raise OSError(errno.ELOOP, "neither a file nor a directory")
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
