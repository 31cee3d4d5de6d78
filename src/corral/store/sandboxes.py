"""Rows of sandboxes and their tags."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from sqlalchemy import Connection, Row, and_, bindparam, delete, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from corral.control.idempotency import Claim
from corral.control.lifecycle import ENDED, LIVING
from corral.control.record import Record
from corral.schema.observe import Event
from corral.schema.sandbox import Reason, State
from corral.store import events
from corral.store.database import Database
from corral.store.tables import idempotency, sandbox_tags, sandboxes

_INSERT = insert(sandboxes)
_UPDATE = update(sandboxes).where(sandboxes.c.id == bindparam("of"))
_INSERT_TAG = insert(sandbox_tags)


class SandboxRows:
    """Implements `control.ports.SandboxRows`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, record: Record, happened: Sequence[Event], claim: Claim | None) -> asyncio.Future[None]:
        """A new row; with a claim, what its Idempotency-Key made, in the same transaction."""

        def do(connection: Connection) -> None:
            connection.execute(_INSERT, _row(record))
            _tag(connection, record)
            if claim is not None:
                _claim(connection, claim, record)
            events.insert_all(connection, happened)

        return self._database.write(do)

    def save(self, record: Record, happened: Sequence[Event], *, tags: bool = False) -> asyncio.Future[None]:
        """Change the row; `tags`: these too."""

        def do(connection: Connection) -> None:
            row = _row(record)
            del row["id"]
            connection.execute(_UPDATE, {"of": record.id, **row})
            if tags:
                connection.execute(delete(sandbox_tags).where(sandbox_tags.c.sandbox == record.id))
                _tag(connection, record)
            events.insert_all(connection, happened)

        return self._database.write(do)

    async def get(self, project: str, id: str) -> Record | None:
        query = select(sandboxes).where(sandboxes.c.id == id, sandboxes.c.project == project)
        row = await self._database.read(lambda connection: connection.execute(query).first())
        return None if row is None else _record(row)

    async def unfinished(self) -> list[Record]:
        """Those that live, and those that have ended and are not yet removed from the node."""
        query = select(sandboxes).where(or_(sandboxes.c.state.in_(LIVING), sandboxes.c.removed.is_(False))).order_by(sandboxes.c.created_at)
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return [_record(row) for row in rows]

    async def page(self, project: str, *, states: frozenset[State], tags: Mapping[str, str], before: tuple[float, str] | None, limit: int) -> list[Record]:
        """The newest first, from after `before` (creation time and id of the last of the page before)."""
        query = select(sandboxes).where(sandboxes.c.project == project, sandboxes.c.state.in_(states))
        for name, value in tags.items():
            of = sandbox_tags.alias()
            query = query.where(select(of.c.sandbox).where(of.c.name == name, of.c.value == value, of.c.sandbox == sandboxes.c.id).exists())
        if before is not None:
            at, id = before
            query = query.where(or_(sandboxes.c.created_at < at, and_(sandboxes.c.created_at == at, sandboxes.c.id < id)))
        query = query.order_by(sandboxes.c.created_at.desc(), sandboxes.c.id.desc()).limit(limit)
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return [_record(row) for row in rows]

    async def forget_ended(self, before: float) -> int:
        """Delete the rows of those that ended before this moment and are removed from the node."""
        which = and_(sandboxes.c.state.in_(ENDED), sandboxes.c.removed.is_(True), sandboxes.c.ended_at < before)

        def do(connection: Connection) -> int:
            connection.execute(delete(sandbox_tags).where(sandbox_tags.c.sandbox.in_(select(sandboxes.c.id).where(which))))
            return connection.execute(delete(sandboxes).where(which)).rowcount

        return await self._database.write(do)


def _tag(connection: Connection, record: Record) -> None:
    if record.tags:
        connection.execute(_INSERT_TAG, [{"sandbox": record.id, "name": name, "value": value} for name, value in record.tags.items()])


def _claim(connection: Connection, claim: Claim, record: Record) -> None:
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    values = {"fingerprint": claim.fingerprint, "at": record.created_at, "subject": record.id, "status": None, "body": None}
    statement = dialect.insert(idempotency).values(project=claim.project, key=claim.key, **values)
    # The same key may stand for a create that failed, or is too old to count.
    connection.execute(statement.on_conflict_do_update(index_elements=["project", "key"], set_=values))


def _row(record: Record) -> dict[str, Any]:
    row = asdict(record)
    for name in ("env", "tags", "timing"):
        row[name] = None if row[name] is None else json.dumps(row[name], separators=(",", ":"))
    return row


def _record(row: Row[Any]) -> Record:
    values: dict[str, Any] = dict(row._mapping)
    record = Record(**values)
    return replace(
        record,
        state=State(record.state),
        reason=None if record.reason is None else Reason(record.reason),
        env=json.loads(values["env"]),
        tags=json.loads(values["tags"]),
        timing=None if values["timing"] is None else json.loads(values["timing"]),
    )
