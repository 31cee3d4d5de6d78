"""Rows of where projects want to be told of events, and how far they were. What requests are signed with comes here encrypted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from corral.control.event_webhooks import Hook
from corral.store.database import Database
from corral.store.tables import event_webhooks


class EventWebhookRows:
    """Implements `control.ports.EventWebhookRows`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def all(self) -> list[Hook]:
        """The oldest first."""
        query = select(event_webhooks).order_by(event_webhooks.c.created_at, event_webhooks.c.id)
        rows: Sequence[Any] = await self._database.read(lambda connection: connection.execute(query).mappings().all())
        return [_hook(dict(row)) for row in rows]

    async def put(self, hook: Hook) -> None:
        """In place of what it was."""
        row = {**asdict(hook), "kinds": json.dumps(hook.kinds), "tags": json.dumps(hook.tags)}

        def do(connection: Connection) -> None:
            connection.execute(delete(event_webhooks).where(event_webhooks.c.id == hook.id))
            connection.execute(insert(event_webhooks), row)

        await self._database.write(do)

    def reached(self, id: str, position: int) -> asyncio.Future[int]:
        return self._database.run(update(event_webhooks).where(event_webhooks.c.id == id).values(position=position))

    async def remove(self, id: str) -> None:
        await self._database.run(delete(event_webhooks).where(event_webhooks.c.id == id))


def _hook(row: dict[str, Any]) -> Hook:
    row["kinds"], row["tags"] = tuple(json.loads(row["kinds"])), json.loads(row["tags"])
    return Hook(**row)
