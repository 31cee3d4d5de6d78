"""How long something may take. Time in which the server is not there does not count: that is the gremlin's doing."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

STEP = 0.5


class Hang(Exception):
    """Something was waited for longer than anybody should."""


class Patience:
    """`seconds` of a server that takes requests, for anything one waits for."""

    def __init__(self, seconds: float, ready: asyncio.Event) -> None:
        self.seconds = seconds
        self._ready = ready

    async def wait(self, work: Coroutine[Any, Any, T], what: str) -> T:
        """The result of `work`, which is cancelled when it hangs. Raises `Hang`."""
        task = asyncio.ensure_future(work)
        left = self.seconds
        try:
            while left > 0:
                counts = self._ready.is_set()
                done, _ = await asyncio.wait({task}, timeout=STEP)
                if done:
                    return task.result()
                if counts and self._ready.is_set():
                    left -= STEP
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task}, timeout=30)
        raise Hang(f"{what}: nothing for {self.seconds:g} s")
