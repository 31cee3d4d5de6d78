"""Rows of sandboxes and their tags."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import Connection, RowMapping, and_, bindparam, delete, insert, or_, select, update

from corral.control.idempotency import Claim
from corral.control.lifecycle import ENDED, LIVING
from corral.control.record import Exposure, Record
from corral.node.interface import VolumeUse
from corral.schema.egress import EgressPolicy
from corral.schema.observe import Event
from corral.schema.sandbox import Reason, State
from corral.schema.secret import SecretUse
from corral.store import events
from corral.store.database import Database
from corral.store.idempotency import claimed
from corral.store.tables import sandbox_tags, sandboxes

_INSERT = insert(sandboxes)
_UPDATE = update(sandboxes).where(sandboxes.c.id == bindparam("of"))
_NAMES = tuple(field.name for field in fields(Record))
_JSON = frozenset({"env", "tags", "timing", "facade"})
_USES = TypeAdapter(tuple[SecretUse, ...])
_INSERT_TAG = insert(sandbox_tags)


class SandboxRows:
    """Implements `control.ports.SandboxRows`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def settle(self) -> None:
        """What was written until now is there after a power cut too."""
        await self._database.settle()

    def create(self, record: Record, happened: Sequence[Event], claim: Claim | None) -> asyncio.Future[None]:
        """A new row; with a claim, what its Idempotency-Key made, in the same transaction."""

        row = _row(record)

        def do(connection: Connection) -> None:
            connection.execute(_INSERT, row)
            _tag(connection, record)
            if claim is not None:
                claimed(connection, claim, record.id, record.created_at)
            events.insert_all(connection, happened)

        return self._database.write(do)

    def save(self, record: Record, changed: Collection[str], happened: Sequence[Event]) -> asyncio.Future[None]:
        """Write these fields of the record into its row."""
        row = _row(record, changed)

        def do(connection: Connection) -> None:
            connection.execute(_UPDATE, {"of": record.id, **row})
            if "tags" in changed:
                connection.execute(delete(sandbox_tags).where(sandbox_tags.c.sandbox == record.id))
                _tag(connection, record)
            events.insert_all(connection, happened)

        return self._database.write(do)

    async def get(self, project: str, id: str) -> Record | None:
        query = select(sandboxes).where(sandboxes.c.id == id, sandboxes.c.project == project)
        row = await self._database.read(lambda connection: connection.execute(query).mappings().first())
        return None if row is None else _record(row)

    async def unfinished(self) -> list[Record]:
        """Those that live, and those that have ended and are not yet removed from the node."""
        query = select(sandboxes).where(or_(sandboxes.c.state.in_(LIVING), sandboxes.c.removed.is_(False))).order_by(sandboxes.c.created_at)
        rows = await self._database.read(lambda connection: connection.execute(query).mappings().all())
        return [_record(row) for row in rows]

    async def find(self, id: str) -> Record | None:
        """Of whatever project."""
        query = select(sandboxes).where(sandboxes.c.id == id)
        row = await self._database.read(lambda connection: connection.execute(query).mappings().one_or_none())
        return None if row is None else _record(row)

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
        rows = await self._database.read(lambda connection: connection.execute(query).mappings().all())
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


def _row(record: Record, names: Iterable[str] = _NAMES) -> dict[str, Any]:
    row = {name: getattr(record, name) for name in names}
    for name in _JSON.intersection(row):
        row[name] = None if row[name] is None else json.dumps(row[name], separators=(",", ":"))
    if "egress" in row:
        row["egress"] = record.egress.model_dump_json(exclude_defaults=True)
    if "previews" in row:
        row["previews"] = json.dumps(asdict(record.previews), separators=(",", ":"))
    if "volumes" in row:
        row["volumes"] = json.dumps([asdict(use) for use in record.volumes], separators=(",", ":"))
    if "secrets" in row:
        row["secrets"] = _USES.dump_json(record.secrets).decode()
    return row


def _record(row: RowMapping) -> Record:
    values: dict[str, Any] = dict(row)
    record = Record(**values)
    return replace(
        record,
        state=State(record.state),
        reason=None if record.reason is None else Reason(record.reason),
        env=json.loads(values["env"]),
        tags=json.loads(values["tags"]),
        timing=None if values["timing"] is None else json.loads(values["timing"]),
        egress=EgressPolicy.model_validate_json(values["egress"]),
        previews=_exposure(json.loads(values["previews"])),
        volumes=tuple(VolumeUse(**use) for use in json.loads(values["volumes"])),
        secrets=_USES.validate_json(values["secrets"]),
        facade=json.loads(values["facade"]),
    )


def _exposure(values: dict[str, Any]) -> Exposure:
    hosts = {int(port): host for port, host in values.pop("hosts", {}).items()}
    only = values.pop("only", None)
    return Exposure(public=tuple(values.pop("public", ())), hosts=hosts, only=None if only is None else tuple(only), **values)
