"""Bytes of big files past the guest: between a caller and the sandbox's disk, through the host's own mount of its root.

The guest's agent does all else: it looks the path up, checks it, makes the file, puts it in its place. What it says is where the file is, and it may say anything: what is opened is a regular
file below the sandbox's root, reached through no link and no mount, so a hostile one has its own files read and written, which it can do itself.

The sentry reads, writes and maps the host's file itself (`directfs`) and keeps nothing of its content. It only keeps its length, which `landed` tells it after an upload; nobody else knows
the file before. A descriptor here keeps a disk's file system alive, so it is closed when the sandbox ends, behind the batch that is under way; attached again before, it is the same live
file system (`loop.attached`).
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from corral.errors import CorralError, Unavailable
from corral.node import syscalls
from corral.node.refusals import refusal
from corral.node.transfer import Transfer
from corral.wire.messages import Problem

T = TypeVar("T")

READ_FROM = 1 << 20
"""Bytes from which on a file is read past the guest; asking costs it half a millisecond."""
_PIECE = 1 << 20
_BATCH = 1 << 20
_MOST = 4 << 20
"""Bytes that wait for a batch that is being written."""
_VECTORS = 1024  # UIO_MAXIOV


@cache
def _threads() -> ThreadPoolExecutor:
    """Of their own, so that nothing else waits behind a slow disk."""
    return ThreadPoolExecutor(4, thread_name_prefix="direct")


def open_to_read(root: Path, path: bytes) -> int | None:
    """A descriptor of a file that the guest has at `path`; None when the host finds none there."""
    return _open(root, path, os.O_RDONLY, None)


def open_to_write(root: Path, path: bytes, *, size: int) -> int | None:
    """The same of an upload's file, which has `size` bytes so far: nothing of an image that would have to be copied first."""
    return _open(root, path, os.O_WRONLY, size)


def _open(root: Path, path: bytes, flags: int, size: int | None) -> int | None:
    try:
        top = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # Looked at before it is opened: opening a pipe or a device may wait, or do something.
            place = syscalls.open_beneath(top, path.lstrip(b"/") or b".", os.O_PATH | os.O_NOFOLLOW)
        finally:
            os.close(top)
        try:
            status = os.fstat(place)
            if not stat.S_ISREG(status.st_mode) or (size is not None and status.st_size != size):
                return None
            return os.open(f"/proc/self/fd/{place}", flags | os.O_CLOEXEC)
        finally:
            os.close(place)
    except OSError:
        return None  # the guest has it somewhere else, or the sandbox has just ended: either is found out by asking the guest for the bytes


class _File:
    """An open file that threads work on, one piece of work at a time. It is closed with its transfer, however long a client may take for what it was given."""

    def __init__(self, file: int, transfer: Transfer) -> None:
        self._file: int | None = file
        self._transfer = transfer
        self._work: Future[Any] | None = None
        transfer.on_over = self.close

    def submit(self, work: Callable[..., T], *arguments: object) -> Future[T]:
        """Do it in a thread, with the descriptor first. Raises what ended the transfer."""
        self._transfer.check()
        if self._file is None:
            raise Unavailable("the transfer was given up")
        started = self._work = _threads().submit(work, self._file, *arguments)
        return started

    def close(self) -> None:
        """Behind the work that is under way. Idempotent."""
        file, self._file = self._file, None
        if file is None:
            return
        if self._work is None:
            os.close(file)
        else:
            self._work.add_done_callback(lambda _: os.close(file))


class DirectDownload:
    """An iterator over the bytes of an open file from `offset` up to `end`. Close it (`aclose`) unless it was read to its end."""

    def __init__(self, transfer: Transfer, file: int, offset: int, end: int) -> None:
        self._transfer = transfer
        self._file = _File(file, transfer)
        self._at = offset
        self._end = end
        self._ahead: Future[bytes] | None = None

    def __aiter__(self) -> DirectDownload:
        return self

    async def __anext__(self) -> bytes:
        try:
            self._transfer.check()
            piece = await asyncio.wrap_future(self._ahead or self._next())
            self._at += len(piece)
            # While this one is sent.
            self._ahead = self._next()
        except BaseException:
            self._transfer.close()
            raise
        if not piece:
            self._transfer.close()
            raise StopAsyncIteration
        self._transfer.used()
        return piece

    def _next(self) -> Future[bytes]:
        return self._file.submit(_read, self._transfer.path, max(0, min(_PIECE, self._end - self._at)), self._at)

    async def aclose(self) -> None:
        self._transfer.close()


async def pour(transfer: Transfer, file: int, offset: int, chunks: AsyncIterator[bytes]) -> int:
    """Write all of `chunks` from `offset` on, and close the file; returns where they end. One batch is written while the next comes in. Raises what ends the transfer."""
    target = _File(file, transfer)
    writing: Future[None] | None = None
    batch: list[bytes] = []
    size = 0
    try:
        async for chunk in chunks:
            batch.append(chunk)
            size += len(chunk)
            if len(batch) < _VECTORS and (size < _BATCH or (size < _MOST and writing is not None and not writing.done())):
                continue
            if writing is not None:
                await asyncio.wrap_future(writing)
            writing = target.submit(_write, transfer.path, batch, offset)
            offset, batch, size = offset + size, [], 0
            transfer.used()
        if writing is not None:
            await asyncio.wrap_future(writing)
        await asyncio.wrap_future(target.submit(_write, transfer.path, batch, offset))
    finally:
        target.close()
    return offset + size


# Below: blocking, in threads


def _read(file: int, path: bytes, size: int, offset: int) -> bytes:
    try:
        return os.pread(file, size, offset)
    except OSError as error:
        raise _refused(error, path) from error


def _write(file: int, path: bytes, pieces: list[bytes], offset: int) -> None:
    left: list[bytes | memoryview] = [piece for piece in pieces if piece]
    while left:
        try:
            done = os.pwritev(file, left[:_VECTORS], offset)
        except OSError as error:
            raise _refused(error, path) from error
        offset += done
        first = 0
        while first < len(left) and done >= len(left[first]):
            done -= len(left[first])
            first += 1
        del left[:first]
        if done:
            left[0] = memoryview(left[0])[done:]


def _refused(error: OSError, path: bytes) -> CorralError:
    return refusal(Problem(code=errno.errorcode.get(error.errno or 0, "EIO"), message=error.strerror or str(error)), path)
