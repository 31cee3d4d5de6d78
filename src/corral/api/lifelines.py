"""Processes that end with their client (`kill_on_disconnect`): who holds them, and what happens when the last one hangs up.

A start with an Idempotency-Key may be taken up again over another connection, by GET …/output?kill_on_disconnect=true, so its process waits a while for that.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing

from corral.control.ports import ProcessBook
from corral.errors import CorralError
from corral.schema.process import Signal

PATIENCE = 10.0
"""Seconds within which a client whose connection broke may come back."""


class LifeLines:
    """Every connection that holds a process."""

    def __init__(self) -> None:
        self._holders: Counter[str] = Counter()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._killing: set[asyncio.Task[None]] = set()

    def hold(self, book: ProcessBook, id: str, *, patience: float) -> LifeLine:
        """One more connection, which must be followed by its `held` stream."""
        if (timer := self._timers.pop(id, None)) is not None:
            timer.cancel()
        self._holders[id] += 1
        return LifeLine(self, book, id, patience)

    def let_go(self, id: str) -> None:
        """That connection has come to its end, whichever way."""
        self._holders[id] -= 1
        if not self._holders[id]:
            del self._holders[id]

    async def cut(self, book: ProcessBook, id: str, patience: float) -> None:
        """That connection broke. The process is killed, at once or later, unless another one holds it."""
        if id in self._holders:
            return
        if not patience:
            await _kill(book, id)
        elif id not in self._timers:
            self._timers[id] = asyncio.get_running_loop().call_later(patience, self._expired, book, id)

    def _expired(self, book: ProcessBook, id: str) -> None:
        del self._timers[id]
        task = asyncio.get_running_loop().create_task(_kill(book, id))
        self._killing.add(task)
        task.add_done_callback(self._killing.discard)


class LifeLine:
    """One connection's hold on a process."""

    def __init__(self, lines: LifeLines, book: ProcessBook, id: str, patience: float) -> None:
        self._lines = lines
        self._book = book
        self._id = id
        self._patience = patience
        self._holds = True

    async def held(self, events: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        """The stream that holds, for as long as it lasts."""
        try:
            async with aclosing(events):
                async for item in events:
                    yield item
        finally:
            self._let_go()

    async def hung_up(self) -> None:
        """What the answer does when its client is gone; the stream may not even have begun then."""
        self._let_go()
        await self._lines.cut(self._book, self._id, self._patience)

    def _let_go(self) -> None:
        if self._holds:
            self._holds = False
            self._lines.let_go(self._id)


async def _kill(book: ProcessBook, id: str) -> None:
    try:
        await book.signal(id, Signal(signal=9, to="tree"))
    except CorralError:
        pass  # it, or its sandbox, has just ended
