"""What a sandbox's agent wrote to its log, descriptor 2: the last lines of it, read as they come."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from datetime import UTC, datetime

from corral.schema.observe import LogLine

LINES = 500
LINE = 2000
"""Bytes kept of one line."""
CHUNK = 16384
PAUSE = 0.05
"""Seconds between two reads, so that a flooding guest costs nothing to speak of; it does not wait for us, what does not fit the pipe is dropped on its side."""


class AgentLog:
    """Follows the read end of one agent's log pipe until it ends or `close`. Borrows the descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._loop = asyncio.get_running_loop()
        self._kept: deque[LogLine] = deque(maxlen=LINES)
        self._partial = b""
        self._timer: asyncio.TimerHandle | None = None
        self._loop.add_reader(fd, self._read)

    def lines(self) -> list[LogLine]:
        """Oldest first."""
        return list(self._kept)

    def close(self) -> None:
        self._loop.remove_reader(self._fd)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _read(self) -> None:
        self._loop.remove_reader(self._fd)
        try:
            data = os.read(self._fd, CHUNK)
        except BlockingIOError:
            data = None
        if data == b"":
            return
        if data:
            self._take(data)
        self._timer = self._loop.call_later(PAUSE, self._again)

    def _again(self) -> None:
        self._timer = None
        self._loop.add_reader(self._fd, self._read)

    def _take(self, data: bytes) -> None:
        *whole, self._partial = (self._partial + data).split(b"\n")
        if len(self._partial) > LINE:
            whole.append(self._partial)
            self._partial = b""
        now = datetime.now(UTC)
        for line in whole:
            self._kept.append(LogLine(at=now, source="agent", text=line[:LINE].decode(errors="replace")))
