"""One timer for all sandboxes: it rings at the earliest moment of the heap, and not otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from corral.control.deadlines import Heap

LONGEST = 3600.0
"""Seconds between looks at the clock, which may be set by hand."""


class Alarm:
    """`ring` is called on the event loop with each id whose moment has come. Moments are on `clock`, seconds since 1970."""

    def __init__(self, clock: Callable[[], float], ring: Callable[[str], None]) -> None:
        self._clock = clock
        self._ring = ring
        self._heap = Heap()
        self._timer: asyncio.TimerHandle | None = None
        self._at: float | None = None

    def set(self, id: str, at: float | None) -> None:
        """Ring for `id` then, and not as was set before; None: not at all."""
        self._heap.set(id, at)
        self._arm()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self) -> None:
        at = self._heap.next()
        if at == self._at:
            return
        self.close()
        self._at = at
        if at is not None:
            wait = min(LONGEST, max(0.0, at - self._clock()))
            self._timer = asyncio.get_running_loop().call_later(wait, self._look)

    def _look(self) -> None:
        self._at = None
        for id in self._heap.due(self._clock()):
            self._ring(id)
        self._arm()
