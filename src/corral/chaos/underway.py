"""What clients are in the middle of, for whoever wants to strike just then."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager, suppress

from corral.chaos.known import Known

DELICATE = frozenset({"snapshot", "checkpoint", "rewind", "stop", "start", "pause", "live_fork"})
"""Deeds of which only the whole or nothing may be seen."""


class Underway:
    """Deeds that have begun and are not over."""

    def __init__(self) -> None:
        self._begun = asyncio.Event()
        self._latest: tuple[str, Known] | None = None
        self._doing: list[tuple[str, Known]] = []

    @contextmanager
    def doing(self, name: str, known: Known | None) -> Generator[None]:
        """For as long as a deed lasts; only delicate ones are of interest."""
        if known is None or name not in DELICATE:
            yield
            return
        one = (name, known)
        self._doing.append(one)
        self._latest = one
        self._begun.set()
        try:
            yield
        finally:
            self._doing.remove(one)

    async def next(self, seconds: float) -> tuple[str, Known] | None:
        """The next that begins; None: none does within that time."""
        self._begun.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._begun.wait()
                return self._latest
        return None

    def lasts(self, one: tuple[str, Known]) -> bool:
        """Whether it is not over."""
        return any(other is one for other in self._doing)
