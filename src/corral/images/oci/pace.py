"""How fast a registry must give what it gives: one that drips would keep a project's slots for hours."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from corral.errors import Unavailable

LEAST = 16 << 10
"""Bytes in a second …"""
WINDOW = 60.0
"""… on average over so many seconds of waiting for them. What is done with them in between does not count."""


class Pace:
    """Of one document or blob, over all the requests that it takes. `clock` counts seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waited = 0.0
        self._came = 0

    def kept(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """The same pieces. Raises `Unavailable` when they come too slowly."""
        while True:
            began = self._clock()
            piece = next(pieces, b"")
            self._waited += self._clock() - began
            self._came += len(piece)
            if not piece:
                return
            if self._waited >= WINDOW:
                if self._came < LEAST * self._waited:
                    raise Unavailable(
                        f"the registry is too slow: {self._came} bytes in {self._waited:.0f} s, where {LEAST >> 10} KiB/s are the least",
                        hint="try again later: layers that came whole are kept",
                    )
                self._waited, self._came = 0.0, 0
            yield piece
