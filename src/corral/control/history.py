"""A short history of what sandboxes use. One that nobody used since the last reading is not read again: idle sandboxes cost nothing."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable

import structlog

from corral.control.ports import Node
from corral.errors import CorralError
from corral.schema.observe import Sample

EVERY = 10.0
"""Seconds between readings."""
KEPT = 60
AT_A_TIME = 16
"""Readings between which others have their turn."""

log = structlog.get_logger(__name__)


class History:
    """`running` gives the ids of the sandboxes that run."""

    def __init__(self, node: Node, running: Callable[[], Iterable[str]]) -> None:
        self._node = node
        self._running = running
        self._samples: dict[str, deque[Sample]] = {}
        self._read_at: dict[str, float] = {}
        self._task: asyncio.Task[None] | None = None

    def of(self, id: str) -> list[Sample]:
        """Oldest first."""
        return list(self._samples.get(id, ()))

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._follow())

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def read_all(self) -> None:
        """One reading of each sandbox that was used."""
        ids = list(self._running())
        for gone in self._samples.keys() - set(ids):
            del self._samples[gone]
            self._read_at.pop(gone, None)
        for number, id in enumerate(ids):
            if number % AT_A_TIME == 0:
                await asyncio.sleep(0)
            try:
                self._read(id)
            except (CorralError, OSError) as error:
                log.debug("sample_failed", sandbox=id, error=str(error))  # it has just ended

    def _read(self, id: str) -> None:
        if self._node.last_activity(id) < self._read_at.get(id, 0.0):
            return
        # Before the reading: what is used while it is taken is used after it.
        self._read_at[id] = time.monotonic()
        self._samples.setdefault(id, deque(maxlen=KEPT)).append(self._node.sample(id))

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(EVERY)
            try:
                await self.read_all()
            except Exception:
                log.exception("sampling_failed")
