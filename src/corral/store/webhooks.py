"""Rows of where projects want to be told of approvals. What requests are signed with comes here encrypted."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import Connection, delete, insert, select

from corral.schema.webhook import Webhook
from corral.store.database import Database
from corral.store.tables import webhooks


class WebhookRows:
    """Implements `control.ports.WebhookRows`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def all(self) -> list[tuple[str, Webhook, bytes]]:
        """With their projects and sealed secrets."""
        rows = await self._database.read(lambda connection: connection.execute(select(webhooks)).all())
        return [(row.project, Webhook(url=row.url, created_at=datetime.fromtimestamp(row.created_at, UTC)), row.sealed) for row in rows]

    async def put(self, project: str, webhook: Webhook, sealed: bytes, *, by: str) -> None:
        """In place of the one before."""
        row = {"project": project, "url": webhook.url, "sealed": sealed, "created_at": webhook.created_at.timestamp(), "created_by": by}

        def do(connection: Connection) -> None:
            connection.execute(delete(webhooks).where(webhooks.c.project == project))
            connection.execute(insert(webhooks), row)

        await self._database.write(do)

    async def remove(self, project: str) -> bool:
        """Whether it was there."""
        return await self._database.run(delete(webhooks).where(webhooks.c.project == project)) > 0
