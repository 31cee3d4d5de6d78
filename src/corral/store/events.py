"""Rows of events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Sequence
from datetime import UTC, datetime

from sqlalchemy import Connection, delete, func, insert, or_, select

from corral.schema.observe import Event
from corral.store.database import Database
from corral.store.tables import events

_INSERT = insert(events)
_AT_A_TIME = 5000


def insert_all(connection: Connection, happened: Sequence[Event]) -> None:
    """As a part of another change."""
    if happened:
        connection.execute(_INSERT, [_row(event) for event in happened])


class EventRows:
    """Implements `control.ports.EventRows`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def last(self) -> int:
        """The greatest number used so far; 0: none."""
        return await self._database.read(lambda connection: connection.execute(select(func.max(events.c.seq))).scalar() or 0)

    def add(self, happened: Sequence[Event]) -> asyncio.Future[None]:
        return self._database.write(lambda connection: insert_all(connection, happened))

    async def since(self, project: str, *, after: int, sandbox: str | None, kinds: Collection[str] | None, limit: int) -> list[Event]:
        query = select(events).where(events.c.project == project, events.c.seq > after)
        if sandbox is not None:
            query = query.where(events.c.sandbox == sandbox)
        if kinds is not None:
            query = query.where(events.c.kind.in_(kinds))
        query = query.order_by(events.c.seq).limit(limit)
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return [
            Event(
                seq=row.seq,
                at=datetime.fromtimestamp(row.at, UTC),
                kind=row.kind,
                project=row.project,
                sandbox=row.sandbox,
                actor=row.actor,
                data=json.loads(row.data),
            )
            for row in rows
        ]

    async def forget(self, before: float, *, keep: int) -> int:
        """Delete those older than this moment, and all but the newest `keep`; some at a time, so that other writes come in between."""
        newest = await self.last()
        old = select(events.c.seq).where(or_(events.c.at < before, events.c.seq <= newest - keep)).limit(_AT_A_TIME)
        gone = 0
        while count := await self._database.run(delete(events).where(events.c.seq.in_(old))):
            gone += count
        return gone


def _row(event: Event) -> dict[str, object]:
    return {
        "seq": event.seq,
        "at": event.at.timestamp(),
        "kind": event.kind,
        "project": event.project,
        "sandbox": event.sandbox,
        "actor": event.actor,
        "data": json.dumps(event.data, separators=(",", ":")),
    }
