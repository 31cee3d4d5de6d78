"""Which denials become events. A guest can be denied as often as it likes; the flow log has them all, the events only what tells something new."""

from __future__ import annotations

from collections.abc import Callable

EVERY = 60.0
"""Seconds in which a destination is told of once …"""
MOST = 60
"""… and so many destinations of one sandbox."""

Destination = tuple[str | None, int | None]


class Denials:
    """`clock` in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._told: dict[str, dict[Destination, float]] = {}

    def fresh(self, sandbox: str, destination: Destination) -> bool:
        """Whether this one is to be told."""
        now = self._clock()
        told = self._told.setdefault(sandbox, {})
        if destination in told or len(told) >= MOST:
            for old in [one for one, at in told.items() if at <= now - EVERY]:
                del told[old]
        if destination in told or len(told) >= MOST:
            return False
        told[destination] = now
        return True

    def forget(self, sandbox: str) -> None:
        """It has ended."""
        self._told.pop(sandbox, None)
