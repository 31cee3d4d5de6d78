"""What a process wrote, by byte offset, on the node's disk: bounded, readable while it grows, still there after the server was killed.

A stream is a row of files `<stream>.<offset of the first byte>` in the process' directory. Only the newest is written; when the stream is larger than its
bound the oldest file is removed whole. Nothing is synced until the sandbox is paused (`settle`): the spool of one that runs must survive the server, not the machine.
A stream without output has no file.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_right
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import structlog

BOUND = 16 << 20
"""Bytes kept of one stream unless configured."""
_SEGMENTS = 4
_DIGITS = 20

log = structlog.get_logger(__name__)


_WRITTEN_BACK = 600.0
"""Seconds after which the kernel has written a file by itself (half a minute as it is shipped)."""


def settle(directory: Path) -> None:
    """What is below is there after a power cut too. Blocks for a sync of each file that was changed lately."""
    newest = time.time() - _WRITTEN_BACK
    for place, _, names in os.walk(directory, topdown=False):
        for path in (*(Path(place, name) for name in names), Path(place)):
            try:
                file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except FileNotFoundError:
                continue  # forgotten meanwhile
            try:
                if os.fstat(file).st_mtime >= newest:
                    os.fsync(file)
            finally:
                os.close(file)


class Piece(NamedTuple):
    """Bytes read from a spool. `dropped` bytes before `offset` were asked for but are gone."""

    offset: int
    data: bytes
    dropped: int


class Segment(NamedTuple):
    """One file of a spool: its name, how much of it counts, whether it may still grow."""

    name: str
    size: int
    grows: bool

    def share(self, source: Path, target: Path) -> None:
        """Have the same in another directory. One that grows is copied; what is gone by now stays away."""
        try:
            if not self.grows:
                os.link(source / self.name, target / self.name)
                return
            with (source / self.name).open("rb") as old, (target / self.name).open("wb") as new:
                os.fchmod(new.fileno(), 0o600)
                left = self.size
                while left and (sent := os.sendfile(new.fileno(), old.fileno(), None, left)):
                    left -= sent
        except FileNotFoundError:
            log.info("spool_gone_before_it_was_shared", path=str(source / self.name))


class Spool:
    """The spool of one stream. `start` is the oldest byte kept, `end` the offset of the next one."""

    __slots__ = ("_bound", "_directory", "_fd", "_on_change", "_segments", "_stream", "end")

    def __init__(self, directory: Path, stream: int, *, bound: int = BOUND, fresh: bool = False, on_change: Callable[[int], None] | None = None) -> None:
        """Open what is there; `fresh`: nothing is, do not look. `on_change` is told by how many bytes the disk's use grew or shrank."""
        self._directory = os.fspath(directory)
        self._stream = stream
        self._bound = bound
        self._fd: int | None = None
        self._on_change: Callable[[int], None] = on_change or (lambda _: None)
        self._segments: list[int] = [] if fresh else self._scan()
        self.end = self._segments[-1] + Path(self._path(self._segments[-1])).stat().st_size if self._segments else 0
        self._on_change(self.size)

    def _scan(self) -> list[int]:
        prefix = f"{self._stream}."
        try:
            return sorted(int(file.name[len(prefix) :]) for file in Path(self._directory).iterdir() if file.name.startswith(prefix))
        except FileNotFoundError:
            return []

    def _path(self, offset: int) -> str:
        return f"{self._directory}/{self._stream}.{offset:0{_DIGITS}}"

    @property
    def start(self) -> int:
        return self._segments[0] if self._segments else self.end

    @property
    def size(self) -> int:
        """Bytes kept."""
        return self.end - self.start

    def segments(self) -> list[Segment]:
        """The files it consists of now, oldest first."""
        bounds = [*self._segments, self.end]
        return [Segment(Path(self._path(begin)).name, end - begin, end == self.end) for begin, end in pairwise(bounds)]

    def append(self, payload: memoryview | bytes) -> None:
        """Write bytes at `end`. When the disk refuses them, they and all before them count as dropped: the process goes on, its reader is told."""
        if not payload:
            return
        target = self.end + len(payload)
        try:
            fd = self._fd
            if fd is None or self.end - self._segments[-1] >= self._bound // _SEGMENTS:
                fd = self._next_file()
            view = memoryview(payload)
            while view:
                written = os.write(fd, view)
                view = view[written:]
                self.end += written
                self._on_change(written)
        except OSError as error:
            log.error("spool_write_failed", path=self._path(self.end), error=str(error), dropped=target - self.start)
            self.skip(target)
        while self.size > self._bound and len(self._segments) > 1:
            self.drop_oldest()

    def _next_file(self) -> int:
        self.close()
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        # After an adoption the newest file is continued.
        reopen = bool(self._segments) and self.end - self._segments[-1] < self._bound // _SEGMENTS
        path = self._path(self._segments[-1] if reopen else self.end)
        try:
            self._fd = os.open(path, flags, 0o600)
        except FileNotFoundError:
            Path(self._directory).mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = os.open(path, flags, 0o600)
        if not reopen:
            self._segments.append(self.end)
        return self._fd

    def skip(self, end: int) -> None:
        """Give up what is kept; the stream goes on at `end`, which an empty file remembers."""
        self.close()
        while self._segments:
            self.drop_oldest()
        self.end = end
        try:
            self._next_file()
        except OSError as error:
            log.error("spool_write_failed", path=self._path(end), error=str(error), dropped=0)

    def drop_oldest(self) -> None:
        """Remove the oldest file."""
        oldest = self._segments.pop(0)
        if not self._segments:
            self.close()
        Path(self._path(oldest)).unlink(missing_ok=True)
        self._on_change(oldest - (self._segments[0] if self._segments else self.end))

    def shrink(self) -> None:
        """Give up the oldest part of what is kept, in favour of another stream."""
        if len(self._segments) > 1:
            self.drop_oldest()
        elif self.size:
            self.skip(self.end)

    def read(self, offset: int, limit: int) -> Piece | None:
        """At most `limit` bytes from `offset` on, or from the oldest byte kept when that is later; None when there are none yet."""
        begin = max(offset, self.start)
        if begin >= self.end:
            return Piece(begin, b"", begin - offset) if begin > offset else None
        index = bisect_right(self._segments, begin) - 1
        segment = self._segments[index]
        last = index == len(self._segments) - 1
        limit = min(limit, (self.end if last else self._segments[index + 1]) - begin)
        if last and self._fd is not None:
            return Piece(begin, os.pread(self._fd, limit, begin - segment), begin - offset)
        fd = os.open(self._path(segment), os.O_RDONLY | os.O_CLOEXEC)
        try:
            return Piece(begin, os.pread(fd, limit, begin - segment), begin - offset)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Close the file being written; reading and appending open what they need again."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def remove(self) -> None:
        """Remove everything kept."""
        self.close()
        while self._segments:
            self.drop_oldest()
