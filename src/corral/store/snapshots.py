"""Rows of snapshots and checkpoints."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from corral.control.idempotency import Claim
from corral.control.shelf import SnapshotRecord
from corral.schema.observe import Event
from corral.store import events
from corral.store.database import Database
from corral.store.idempotency import claimed
from corral.store.tables import snapshots


class SnapshotRows:
    """Implements `control.ports.SnapshotRows`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def settle(self) -> None:
        """What was written until now is there after a power cut too."""
        await self._database.settle()

    async def all(self) -> list[SnapshotRecord]:
        """The oldest first."""
        query = select(snapshots).order_by(snapshots.c.created_at, snapshots.c.id)
        rows: Sequence[Any] = await self._database.read(lambda connection: connection.execute(query).mappings().all())
        return [_record(dict(row)) for row in rows]

    def create(self, record: SnapshotRecord, happened: Sequence[Event], claim: Claim | None, *, instead_of: str | None = None) -> asyncio.Future[None]:
        """A new row; with a claim, what its Idempotency-Key made, in the same transaction, in which nobody sees `instead_of` any more either."""
        row = {**asdict(record), "shared_with": json.dumps(record.shared_with)}

        def do(connection: Connection) -> None:
            if instead_of is not None:
                connection.execute(update(snapshots).where(snapshots.c.id == instead_of).values(removed=True))
            connection.execute(insert(snapshots), row)
            if claim is not None:
                claimed(connection, claim, record.id, record.created_at)
            events.insert_all(connection, happened)

        return self._database.write(do)

    def share(self, id: str, projects: Sequence[str], happened: Sequence[Event]) -> asyncio.Future[None]:
        """These other projects may use it, and no more."""

        def do(connection: Connection) -> None:
            connection.execute(update(snapshots).where(snapshots.c.id == id).values(shared_with=json.dumps(projects)))
            events.insert_all(connection, happened)

        return self._database.write(do)

    def hide(self, id: str, happened: Sequence[Event]) -> asyncio.Future[None]:
        """Nobody sees it any more."""

        def do(connection: Connection) -> None:
            connection.execute(update(snapshots).where(snapshots.c.id == id).values(removed=True))
            events.insert_all(connection, happened)

        return self._database.write(do)

    def forget(self, id: str) -> asyncio.Future[int]:
        """The node has nothing of it any more."""
        return self._database.run(delete(snapshots).where(snapshots.c.id == id))


def _record(row: dict[str, Any]) -> SnapshotRecord:
    row["shared_with"] = tuple(json.loads(row["shared_with"]))
    return SnapshotRecord(**row)
