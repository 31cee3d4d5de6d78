"""Rows of volumes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, delete, insert, select

from corral.control.idempotency import Claim
from corral.control.volumes import VolumeRecord
from corral.schema.observe import Event
from corral.store import events
from corral.store.database import Database
from corral.store.idempotency import claimed
from corral.store.tables import volumes


class VolumeRows:
    """Implements `control.ports.VolumeRows`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def settle(self) -> None:
        """What was written until now is there after a power cut too."""
        await self._database.settle()

    async def all(self) -> list[VolumeRecord]:
        rows: Sequence[Any] = await self._database.read(lambda connection: connection.execute(select(volumes)).mappings().all())
        return [VolumeRecord(**row) for row in rows]

    def create(self, record: VolumeRecord, happened: Sequence[Event], claim: Claim | None) -> asyncio.Future[None]:
        """A new row; with a claim, what its Idempotency-Key made, in the same transaction."""
        row = asdict(record)

        def do(connection: Connection) -> None:
            connection.execute(insert(volumes), row)
            if claim is not None:
                claimed(connection, claim, record.id, record.created_at)
            events.insert_all(connection, happened)

        return self._database.write(do)

    def remove(self, id: str, happened: Sequence[Event]) -> asyncio.Future[None]:
        def do(connection: Connection) -> None:
            connection.execute(delete(volumes).where(volumes.c.id == id))
            events.insert_all(connection, happened)

        return self._database.write(do)
