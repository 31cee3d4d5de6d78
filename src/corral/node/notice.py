"""Waking whoever waits for a change, without polling and without a task for each waiter."""

from __future__ import annotations

import asyncio


class Notice:
    """Wakes everyone who waits, once. It holds no state: check the condition, then `wait` with nothing awaited in between, then check again."""

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[None]] = set()

    def set(self) -> None:
        """Wake all that wait now."""
        if not self._waiters:
            return
        waiters, self._waiters = self._waiters, set()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self) -> None:
        """Until the next `set`."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)
