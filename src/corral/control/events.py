"""What happened, in order: numbered, stored, and told to whoever follows. Nobody is told of an event that is not stored."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from itertools import islice
from typing import Any

import structlog

from corral.control.ports import EventRows
from corral.control.record import moment
from corral.node.notice import Notice
from corral.schema.observe import Event

RECENT = 4096
"""Events kept in memory for those who follow."""
PAGE = 500

log = structlog.get_logger(__name__)


class EventLog:
    """Give it events by `note` (stored on their own) or `next` (stored by the caller, together with what they tell of, then `told`)."""

    def __init__(self, rows: EventRows, clock: Callable[[], float]) -> None:
        self._rows = rows
        self._clock = clock
        self._seq = 0
        self._told = 0
        self._recent: deque[Event] = deque(maxlen=RECENT)
        self._news = Notice()
        self._storing: set[asyncio.Future[None]] = set()

    async def open(self) -> None:
        """Go on counting where the store ends."""
        self._seq = self._told = await self._rows.last()

    @property
    def seq(self) -> int:
        """Of the newest event."""
        return self._seq

    def next(self, kind: str, project: str, *, sandbox: str | None = None, actor: str | None = None, data: Mapping[str, Any] | None = None) -> Event:
        """The next event. The caller stores it and everything else in the order of these calls."""
        self._seq += 1
        return Event(seq=self._seq, at=moment(self._clock()), kind=kind, project=project, sandbox=sandbox, actor=actor, data=dict(data or {}))

    def note(self, kind: str, project: str, *, sandbox: str | None = None, actor: str | None = None, data: Mapping[str, Any] | None = None) -> None:
        """Something happened: store it behind and tell it then."""
        event = self.next(kind, project, sandbox=sandbox, actor=actor, data=data)
        self.when_stored(self._rows.add([event]), event)

    def when_stored(self, stored: asyncio.Future[None], *events: Event) -> None:
        """Tell these events as soon as `stored` is done."""

        def done(future: asyncio.Future[None]) -> None:
            self._storing.discard(future)
            if future.cancelled() or future.exception() is not None:
                return  # the store has said so; a follower sees the gap in `seq`
            self._recent.extend(events)
            self._told = max(self._told, *(event.seq for event in events))
            self._news.set()

        self._storing.add(stored)
        stored.add_done_callback(done)

    def project_removed(self, project: str) -> None:
        """Nothing has happened in a later project of its name. The rows are seen to already."""
        self._recent = deque((event for event in self._recent if event.project != project), RECENT)

    async def since(self, project: str, *, after: int, sandbox: str | None = None, kinds: Collection[str] | None = None, limit: int = PAGE) -> list[Event]:
        """Stored events with a `seq` greater than `after`, oldest first; of these kinds."""
        return await self._rows.since(project, after=after, sandbox=sandbox, kinds=kinds, limit=limit)

    async def follow(self, project: str, *, after: int, sandbox: str | None = None, kinds: Collection[str] | None = None) -> AsyncIterator[Event]:
        """Events with a `seq` greater than `after`: those that were, then those that come, without end."""
        while True:
            # Read before the rows are: whatever is told by now is among them.
            told = self._told
            if self._recent and after >= self._recent[0].seq - 1:
                fresh = [event for event in self._newer(after) if _matches(event, project, sandbox, kinds)]
            else:
                fresh = await self.since(project, after=after, sandbox=sandbox, kinds=kinds)
            for event in fresh:
                yield event
                after = event.seq
            if len(fresh) < PAGE:
                after = max(after, told)
            if self._told <= after:
                await self._news.wait()

    def _newer(self, after: int) -> list[Event]:
        behind = self._told - after
        if behind <= 0:
            return []
        return [event for event in islice(reversed(self._recent), min(behind, len(self._recent))) if event.seq > after][::-1]


def _matches(event: Event, project: str, sandbox: str | None, kinds: Collection[str] | None) -> bool:
    return event.project == project and (sandbox is None or event.sandbox == sandbox) and (kinds is None or event.kind in kinds)
