"""Started members waiting for a claim, asleep, refilled in the background.

Taking one is a `popleft`. Claims go first: members are made one after the other, by processes with a small share of the processors; with pauses in between while there are claims, and
while these follow each other closely, only once seven eighths of the pool are used up.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

import structlog

from corral.errors import CorralError, PlatformError, SetupError
from corral.node.cgroup import MIB
from corral.node.holder_client import HolderClient
from corral.node.members import Member

MEMBER_MIB = 16
"""What a sleeping member costs the machine (research: 12 to 14, and some for what is shared)."""
GREATEST = 128
"""Members a pool has at most unless another size is asked for."""
SHARE = 10
"""Percent of the memory available at the start that such a pool may take."""
FIRST = 16
"""Members made one after the other; those beyond are not urgent …"""
PACE = 0.5
"""… and made so many seconds apart."""
FLOOR = 0.10
"""Share of the machine's memory that must stay available: below it no member is made, and those that wait are given up one by one."""
LOOK = 5.0
"""Seconds between two looks at the machine's memory."""
CALM = 0.3
"""Seconds after a claim in which a pool is left as it is: the new sandbox's first command is worth more …"""
RESERVE = 8
"""… unless less than this part of it is left."""
BUSY = 2.0
"""Seconds after a claim in which making a member is followed by a pause of the same length."""
RETRY = (0.5, 30.0)
"""Seconds to wait after a failure: the first time, and at most."""

log = structlog.get_logger(__name__)


def default_size() -> int:
    """Members for a pool of which nobody said how large: by the memory available now, 2 to 128."""
    return max(2, min(GREATEST, available() * SHARE // 100 // (MEMBER_MIB * MIB)))


def available() -> int:
    """Bytes the machine could give to new programs without swapping (MemAvailable)."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/meminfo does not tell MemAvailable")


def total() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class Make(Protocol):
    """Makes a member, in the background or for somebody who waits."""

    def __call__(self, *, background: bool) -> Awaitable[Member]: ...


class Pool:
    """Up to `size` ready members. `sleep`: whether waiting members are stopped, which costs a millisecond at the claim."""

    def __init__(self, make: Make, destroy: Callable[[Member], Awaitable[None]], holder: HolderClient, *, size: int, sleep: bool) -> None:
        self.size = size
        self._make = make
        self._destroy = destroy
        self._holder = holder
        self._sleep = sleep
        self._ready: deque[Member] = deque()
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._next: Pool | None = None
        self._full = asyncio.Event()
        self._taken_at = -CALM
        # More at once than there are processors only makes all of them late.
        self._cold = asyncio.Semaphore(max(2, os.cpu_count() or 2))
        self._funerals: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._ready)

    def waiting(self) -> list[Member]:
        return list(self._ready)

    def start(self, *, then: Pool | None = None) -> None:
        """Fill it; and when it is full for the first time, another one."""
        self._next = then
        self._wanted.set()
        self._task = asyncio.create_task(self._refill(), name="pool refill")

    async def close(self) -> None:
        """Stop refilling and end the members that wait."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        await self.resize(0)
        if self._funerals:
            await asyncio.wait(self._funerals)

    async def resize(self, size: int) -> None:
        """Another number of members; what is too many is ended now."""
        self.size = size
        surplus = [self._ready.pop() for _ in range(len(self._ready) - size)]
        await asyncio.gather(*(self._destroy(member) for member in surplus))
        self._wanted.set()

    async def filled(self) -> None:
        """Until the pool is as full as it will be."""
        await self._full.wait()

    def take(self) -> Member | None:
        """A ready member, asleep, or None. Does not wait."""
        self._full.clear()
        self._wanted.set()
        self._taken_at = time.monotonic()
        while self._ready:
            member = self._ready.popleft()
            if member.sentry.alive:
                return member
            self._let_go(member)  # before the holder has told of it
        return None

    async def make(self) -> Member:
        """A member for a claim that found none. Waits for its turn: first come, first served."""
        async with self._cold:
            # While it waited, the pool may have got one.
            if (member := self.take()) is not None:
                return member
            try:
                return await self._make(background=False)
            except SetupError:
                raise
            except PlatformError as error:
                # It was killed while it was being made, or the holder was (another is on its way, and the call waits for it): none of the caller's doing.
                log.warning("a member is made again", error=str(error))
                return await self._make(background=False)

    def add(self, member: Member) -> None:
        """Put a fresh member in."""
        if self._sleep:
            member.sentry.stop()
        self._ready.append(member)
        for pid in member.sentry.pids:
            self._holder.exit_of(pid).add_done_callback(lambda _: self._bury(member))

    def _bury(self, member: Member) -> None:
        """A member has died while it waited (or since; then it is no longer ours)."""
        if member in self._ready:
            self._ready.remove(member)
            self._let_go(member)

    def _let_go(self, member: Member) -> None:
        log.warning("a waiting member ended", member=member.id)
        task = asyncio.create_task(self._destroyed(member))
        self._funerals.add(task)
        task.add_done_callback(self._funerals.discard)
        self._wanted.set()

    async def _destroyed(self, member: Member) -> None:
        await self._destroy(member)

    async def _refill(self) -> None:
        delay = RETRY[0]
        while True:
            short = available() < FLOOR * total()
            if short and self._ready:
                log.warning("memory is short: giving up a waiting member", available_mib=available() // MIB, waiting=len(self._ready) - 1)
                try:
                    await self._destroy(self._ready.pop())
                except (CorralError, OSError) as error:
                    log.error("a waiting member was not wholly removed", error=str(error))
                continue
            if short or len(self._ready) >= self.size:
                self._full.set()
                if self._next is not None:
                    self._next.start()
                    self._next = None
                self._wanted.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wanted.wait(), LOOK)
                continue
            began = time.monotonic()
            calm_in = self._taken_at + CALM - began
            if calm_in > 0 and RESERVE * len(self._ready) >= self.size:
                await asyncio.sleep(calm_in)
                continue
            try:
                member = await self._make(background=True)
            except (CorralError, OSError) as error:
                log.error("the pool could not make a member", error=str(error), retry_in=delay)
                self._full.set()
                await asyncio.sleep(delay)
                delay = min(delay * 2, RETRY[1])
                continue
            delay = RETRY[0]
            self.add(member)
            now = time.monotonic()
            if now - self._taken_at < BUSY:
                await asyncio.sleep(now - began)
            elif len(self._ready) > FIRST:
                self._wanted.clear()
                with contextlib.suppress(TimeoutError):
                    # A claim ends the pause.
                    await asyncio.wait_for(self._wanted.wait(), PACE)
