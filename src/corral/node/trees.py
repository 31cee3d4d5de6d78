"""Trees of files that somebody else has made, and how they are deleted: a million levels deep or a million files wide, it is all the same."""

from __future__ import annotations

import errno
import os

from corral import spawn

_LONGEST = 3600.0
"""Seconds that one may take to go."""


def remove(path: str | os.PathLike[str], *, dir_fd: int | None = None) -> None:
    """A file, or a directory with all that is below it, if it is there; with `dir_fd` a name in that directory. No link is followed. Blocks.

    Raises `OSError` when something of it stays. Not `shutil.rmtree`: that goes down by recursion, with a descriptor for each level.
    """
    where = os.fspath(path) if dir_fd is None else f"/proc/{os.getpid()}/fd/{dir_fd}/{os.fspath(path)}"
    try:
        spawn.run(["rm", "-rf", "--", where], timeout=_LONGEST).check()
    except spawn.ProgramFailed as error:
        raise OSError(errno.ENOTEMPTY, f"it could not be removed whole: {error.message}", os.fspath(path)) from error
