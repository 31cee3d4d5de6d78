"""What is forgotten after a while (rows of sandboxes that have ended, events, Idempotency-Keys), and what is put to rest on the disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from corral.control import idempotency, ledger
from corral.control.ports import Store

EVERY = 60.0
KEEP_EVENTS = 7 * 86_400.0
"""Seconds for which events are kept …"""
GREATEST = 1_000_000
"""… and how many at most."""

log = structlog.get_logger(__name__)


class Housekeeper:
    """Looks once a minute."""

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._keep_house())

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def tidy(self) -> None:
        """Forget what is old now."""
        now = self._clock()
        await self._store.sandboxes.forget_ended(now - ledger.KEEP)
        await self._store.events.forget(now - KEEP_EVENTS, keep=GREATEST)
        await self._store.replays.forget(now - idempotency.KEEP)
        await self._store.checkpoint()

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(EVERY)
            try:
                await self.tidy()
            except Exception:
                # The next minute is another chance; a store that fails says so in /readyz.
                log.exception("housekeeping_failed")
