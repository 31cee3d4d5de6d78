"""Bytes that have come from a guest and that nobody has taken yet."""

from __future__ import annotations

from collections import deque

SMALL = 4096
"""Bytes below which a piece is joined with those that come behind it …"""
JOINED = 64 << 10
"""… up to so many: a guest that sends single bytes must not cost an object for each."""


class Pieces:
    """In the order in which they came."""

    def __init__(self) -> None:
        self._pieces: deque[bytes | bytearray] = deque()

    def __bool__(self) -> bool:
        return bool(self._pieces)

    def put(self, payload: memoryview) -> None:
        """Keep a copy."""
        last = self._pieces[-1] if self._pieces else None
        if isinstance(last, bytearray) and len(last) + len(payload) <= JOINED:
            last += payload
        elif payload:
            self._pieces.append(bytearray(payload) if len(payload) < SMALL else bytes(payload))

    def take(self) -> bytes:
        """The first one. Raises `IndexError` when there is none."""
        return bytes(self._pieces.popleft())

    def clear(self) -> None:
        self._pieces.clear()
