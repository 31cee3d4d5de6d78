"""One at a time for each of many things, named by their ids. A lock lives as long as somebody has it or waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary


class Turns:
    """Lives on the event loop. First come, first served."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def alone(self, id: str) -> AsyncGenerator[None]:
        if (lock := self._locks.get(id)) is None:
            lock = self._locks[id] = asyncio.Lock()
        async with lock:
            yield
