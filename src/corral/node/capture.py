"""A disk at one moment, while its sandbox goes on writing.

    write out      without stopping anybody, again while that takes long
    freeze         writers wait; what is left is written out, so that the image is whole
    copy           shared blocks: some milliseconds
    thaw           writers go on

A frozen file system must never stay so: it is thawed when the copy fails, when it takes too long, and, by an heir, when this process is killed.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

from corral import spawn
from corral.errors import SetupError, Unavailable
from corral.node import syscalls

LONGEST = 5.0
"""Seconds for which writers may have to wait; then the copy is given up."""
_PASSES = 4
_SHORT = 0.02
"""Seconds of writing out after which freezing won't take long either."""
_HEIR_TIMEOUT = 5.0


def capture(mounted: Path, copy: Callable[[], None]) -> float:
    """Call `copy` while the file system at `mounted` stands still; returns for how many seconds it did.

    Raises `Unavailable` when it took too long, and whatever `copy` raises; writers go on in any case.
    """
    thawing = shutil.which("fsfreeze")
    if thawing is None:
        raise SetupError("fsfreeze is not installed", hint="apt-get install util-linux")
    fd = os.open(mounted, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with spawn.heir([thawing, "--unfreeze", str(mounted)], timeout=_HEIR_TIMEOUT):
            _write_out(fd)
            return _stand_still(fd, copy)
    finally:
        os.close(fd)


def capture_still(mounted: Path, copy: Callable[[], None]) -> float:
    """As `capture`, for a file system whose writers stand still anyway and which was written out just before.

    Nobody is to let them go on if this process is killed: the next server does, before it has those writers go on (`PoolDisks.open`).
    """
    fd = os.open(mounted, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _stand_still(fd, copy)
    finally:
        os.close(fd)


def thaw(mounted: Path) -> None:
    """Let the writers of a file system go on; nothing happens if they do."""
    fd = os.open(mounted, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _thaw(fd)
    finally:
        os.close(fd)


def _write_out(fd: int) -> None:
    """Whoever writes at full speed fills memory again meanwhile, but each pass has less to do than the one before."""
    for _ in range(_PASSES):
        began = time.perf_counter()
        syscalls.syncfs(fd)
        if time.perf_counter() - began < _SHORT:
            return


def _stand_still(fd: int, copy: Callable[[], None]) -> float:
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        _thaw(fd)

    began = time.perf_counter()
    syscalls.freeze(fd)
    timer = threading.Timer(LONGEST, expire)
    try:
        timer.start()
        copy()
    finally:
        timer.cancel()
        _thaw(fd)
        # It may be thawing just now, with this descriptor.
        timer.join()
    if expired.is_set():
        raise Unavailable(f"the disk could not be copied within {LONGEST:g} s, and goes on", hint="look at the load of the pool's device, and try again")
    return time.perf_counter() - began


def _thaw(fd: int) -> None:
    try:
        syscalls.thaw(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # it is not frozen
            raise
