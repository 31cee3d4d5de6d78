"""Memory that was reserved for sandboxes whole (`reserve`), and that they don't use yet: it is free, and nobody else's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from corral.control.ports import Node
from corral.control.registry import Living
from corral.errors import CorralError
from corral.schema.sandbox import State

FRESH = 0.5
"""Seconds for which a sandbox's use counts as known: reading it takes some 0.1 ms."""


class Promises:
    """Called for MiB, before each start."""

    def __init__(self, node: Node, living: Callable[[], Iterable[Living]], clock: Callable[[], float] = time.monotonic) -> None:
        self._node = node
        self._living = living
        self._clock = clock
        self._used: dict[str, tuple[float, float]] = {}

    def __call__(self) -> int:
        running = [living.record for living in self._living() if living.record.reserve and living.record.state in (State.RUNNING, State.FROZEN)]
        reserved = {record.id: record.memory for record in running}
        for gone in self._used.keys() - reserved.keys():
            del self._used[gone]
        return sum(max(0, memory - int(self._use(id))) for id, memory in reserved.items())

    def _use(self, id: str) -> float:
        now = self._clock()
        at, used = self._used.get(id, (float("-inf"), 0.0))
        if now - at > FRESH:
            try:
                used = self._node.sample(id).memory
            except (CorralError, OSError):
                return 0.0  # it has just ended: in a moment it is not in the list
            self._used[id] = (now, used)
        return used
