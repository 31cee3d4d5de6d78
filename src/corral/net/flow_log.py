"""What has happened, on its way to the server: in batches, kept until the server has them, bounded."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

KEPT = 50_000
"""Records kept while no server listens; of more, the oldest are lost, and the loss is told."""
BATCH = 500
LONGEST = 1000
"""Characters of one field; the rest is cut off."""
PAUSE = 0.05
"""Seconds in which records gather to a batch."""


class FlowLog:
    """Numbers records and sends them. `send` is given a batch's number and records; False: nobody is there."""

    def __init__(self, send: Callable[[int, list[dict[str, Any]]], bool]) -> None:
        self._send = send
        self._waiting: deque[dict[str, Any]] = deque()
        self._sent: deque[tuple[int, list[dict[str, Any]]]] = deque()
        self._in_sent = 0
        self._timer: asyncio.TimerHandle | None = None
        self._seq = self._batch = 0
        self.lost = 0

    def add(self, **record: Any) -> None:
        """Fields are those of `corral.schema.egress.Flow`; `seq` and, unless given, `at` are added."""
        self._seq += 1
        record = {"seq": self._seq, "at": datetime.now(UTC).isoformat(), **{name: _short(value) for name, value in record.items() if value is not None}}
        self._waiting.append(record)
        while len(self._waiting) + self._in_sent > KEPT:
            self.lost += 1
            if self._sent:
                self._in_sent -= len(self._sent.popleft()[1])
            else:
                self._waiting.popleft()
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PAUSE, self.flush)

    def flush(self) -> None:
        """Send what has gathered, now."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
            self._batch += 1
            if not self._send(self._batch, batch):
                self._waiting.extendleft(reversed(batch))
                return
            self._sent.append((self._batch, batch))
            self._in_sent += len(batch)

    def seen(self, batch: int) -> None:
        """The server has this batch and those before it."""
        while self._sent and self._sent[0][0] <= batch:
            self._in_sent -= len(self._sent.popleft()[1])

    def resume(self) -> None:
        """A server is there (again): what was not acknowledged goes first."""
        for _, batch in reversed(self._sent):
            self._waiting.extendleft(reversed(batch))
        self._sent.clear()
        self._in_sent = 0
        self.flush()


def _short(value: Any) -> Any:
    return value[:LONGEST] if isinstance(value, str) else value
