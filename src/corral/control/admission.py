"""Who may start a sandbox now. A node that is full makes callers wait their turn, one project after the other; a busy one starts only so many at once.

enter ──► started at once when nobody waits, a place is free and there is room
   └────► queue of its project ──► its turn when a place is free and there is room
                              └──► `Unavailable` when there is no room and its `wait` is over
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace

from corral.errors import CorralError, InvalidArgument, Unavailable

HEADROOM = 0.1
"""The part of the machine's memory that is kept free, so that the host never has to kill anything."""
DISK_HEADROOM = 0.03
START_MEMORY = 64
"""MiB that a sandbox takes while it starts; more shows in the free memory by itself."""
LOOK_AGAIN = 0.25
"""Seconds between looks at the free memory while somebody waits for it: it also grows when programs inside sandboxes end, of which nobody tells."""


@dataclass(frozen=True)
class Capacity:
    """What the node has, and what is free now: MiB and cores."""

    memory: int
    memory_free: int
    disk: int
    disk_free: int
    cores: int

    def lacks(self, memory: int = 0) -> str | None:
        """What there is too little of to start one more that is to have so much memory for itself, in words."""
        if self.memory_free - memory < self.memory * HEADROOM:
            wanted = f", and {memory} are to be reserved" if memory else ""
            return f"{self.memory_free} MiB of {self.memory} MiB of memory are free, and {self.memory * HEADROOM:.0f} are kept so{wanted}"
        if self.disk_free < self.disk * DISK_HEADROOM:
            return f"{self.disk_free} MiB of {self.disk} MiB of disk are free, and {self.disk * DISK_HEADROOM:.0f} are kept so"
        return None

    def check(self, *, cpu: float, memory: int, disk: int, reserve: bool = False) -> None:
        """Raises `InvalidArgument` for a sandbox that could never be had here. `reserve`: its memory is to be kept for it."""
        most = int(self.memory * (1 - HEADROOM)) if reserve else self.memory
        for field, wanted, there, unit in (("cpu", cpu, self.cores, "cores"), ("memory", memory, most, "MiB"), ("disk", disk, self.disk, "MiB")):
            if wanted > there:
                raise InvalidArgument(
                    f"{field}: {wanted:g} {unit} are more than this machine {'can reserve' if reserve and field == 'memory' else 'has'} ({there:g})",
                    hint=f"ask for at most {there:g}",
                    details={"field": field, "value": wanted, "limit": there},
                )


class _Waiter:
    """One caller in the queue."""

    def __init__(self, *, patient: bool, memory: int) -> None:
        self.patient = patient
        self.memory = memory
        self.turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Gate:
    """`capacity` is asked before each start; `places` is how many may start at once."""

    def __init__(self, capacity: Callable[[], Capacity], *, places: int) -> None:
        self.capacity = capacity
        self.promised: Callable[[], int] = lambda: 0
        """MiB that are free and reserved for sandboxes that run and don't use them yet."""
        self._places = places
        self._starting = 0
        self._starting_memory = 0
        self._closed = False
        self._queues: OrderedDict[str, deque[_Waiter]] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None

    def close(self) -> None:
        """Nobody waits any more: those who do are refused."""
        self._closed = True
        self.look()

    @property
    def waiting(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    @asynccontextmanager
    async def turn(self, project: str, *, wait: float, memory: int = 0) -> AsyncGenerator[None, None]:
        """Hold a place while a sandbox starts, with room for so many MiB of it; 0: for one that takes its memory as it comes.

        Raises `Unavailable` when there is no room for `wait` seconds.
        """
        if self._queues or self._starting >= self._places or self._room().lacks(memory) is not None:
            await self._queue(project, wait, memory)
        else:
            self._begin(memory)
        try:
            yield
        finally:
            self._ended(memory)
            self.look()

    @contextmanager
    def keep(self, memory: int) -> Generator[None]:
        """Nobody is let in on so many MiB meanwhile: who holds them is about to take them again."""
        self._starting_memory += memory
        try:
            yield
        finally:
            self._starting_memory -= memory
            self.look()

    def look(self) -> None:
        """Something may have become free: let in who can be."""
        if self._closed:
            for waiter in [waiter for queue in self._queues.values() for waiter in queue]:
                _refuse(waiter, "the server is leaving")
            return
        while self._queues and self._starting < self._places and (found := self._next()) is not None:
            project, waiter = found
            self._queues[project].remove(waiter)
            self._queues.move_to_end(project)
            if not self._queues[project]:
                del self._queues[project]
            self._begin(waiter.memory)
            waiter.turn.set_result(None)
        self._look_again()

    def _next(self) -> tuple[str, _Waiter] | None:
        """The first in turn for whom there is room. Those before who need more room let others pass, and are refused if they won't wait."""
        room = self._room()
        for project, queue in self._queues.items():
            for waiter in queue:
                if waiter.turn.done():
                    continue  # refused: it is about to leave
                if (lacks := room.lacks(waiter.memory)) is None:
                    return project, waiter
                if not waiter.patient:
                    _refuse(waiter, f"the node is full: {lacks}")
        return None

    async def _queue(self, project: str, wait: float, memory: int) -> None:
        waiter = _Waiter(patient=wait > 0, memory=memory)
        self._queues.setdefault(project, deque()).append(waiter)
        patience = asyncio.get_running_loop().call_later(wait, self._tire, waiter) if waiter.patient else None
        self.look()
        try:
            await waiter.turn
        except BaseException as error:
            self._leave(project, waiter, had_turn=not isinstance(error, CorralError))
            raise
        finally:
            if patience is not None:
                patience.cancel()

    def _tire(self, waiter: _Waiter) -> None:
        waiter.patient = False
        self.look()

    def _leave(self, project: str, waiter: _Waiter, *, had_turn: bool) -> None:
        if queue := self._queues.get(project):
            if waiter in queue:
                queue.remove(waiter)
                had_turn = False
            if not queue:
                del self._queues[project]
        if had_turn and waiter.turn.done() and not waiter.turn.cancelled():
            # Its turn came in the moment in which it went away.
            self._ended(waiter.memory)
        self.look()

    def _begin(self, memory: int) -> None:
        self._starting += 1
        self._starting_memory += max(START_MEMORY, memory)

    def _ended(self, memory: int) -> None:
        self._starting -= 1
        self._starting_memory -= max(START_MEMORY, memory)

    def _room(self) -> Capacity:
        """What is free for others than those who start now, and those for whom it is reserved."""
        capacity = self.capacity()
        return replace(capacity, memory_free=capacity.memory_free - self._starting_memory - self.promised())

    def _look_again(self) -> None:
        if self._timer is None and self._queues and self._starting < self._places:
            self._timer = asyncio.get_running_loop().call_later(LOOK_AGAIN, self._timed)

    def _timed(self) -> None:
        self._timer = None
        self.look()


def _refuse(waiter: _Waiter, why: str) -> None:
    if not waiter.turn.done():
        waiter.turn.set_exception(Unavailable(why, hint="wait for room with wait=SECONDS, or delete sandboxes"))
