"""Rows of secrets. Their values come here encrypted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, and_, delete, func, insert, select, update

from corral.schema.secret import Secret
from corral.store.database import Database
from corral.store.tables import secrets


class SecretRows:
    """Implements `control.ports.SecretRows`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def all(self, project: str) -> list[Secret]:
        query = select(secrets).where(secrets.c.project == project).order_by(secrets.c.name)
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return [_secret(row) for row in rows]

    async def sealed(self, project: str, names: Collection[str]) -> list[tuple[Secret, bytes]]:
        """Those of these names that there are."""
        query = select(secrets).where(secrets.c.project == project, secrets.c.name.in_(names))
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return [(_secret(row), row.sealed) for row in rows]

    async def add(self, secret: Secret, sealed: bytes) -> bool:
        """Whether its name was free."""
        row = {"id": secret.id, "name": secret.name, "project": secret.project, "sealed": sealed}
        row |= {"version": secret.version, "tags": json.dumps(secret.tags)}
        row |= {"created_at": secret.created_at.timestamp(), "changed_at": secret.changed_at.timestamp()}
        taken = select(secrets.c.id).where(secrets.c.project == secret.project, secrets.c.name == secret.name)

        def do(connection: Connection) -> bool:
            if connection.execute(taken).first() is not None:
                return False
            connection.execute(insert(secrets), row)
            return True

        return await self._database.write(do)

    async def count(self, project: str) -> int:
        query = select(func.count()).where(secrets.c.project == project)
        return await self._database.read(lambda connection: connection.execute(query).scalar_one())

    async def change(self, id: str, sealed: bytes, tags: Mapping[str, str] | None, at: datetime) -> Secret | None:
        """Its next version; None when it is not there any more."""
        fresh: dict[str, Any] = {"sealed": sealed, "version": secrets.c.version + 1, "changed_at": at.timestamp()}
        if tags is not None:
            fresh["tags"] = json.dumps(dict(tags))

        def do(connection: Connection) -> Row[Any] | None:
            connection.execute(update(secrets).where(secrets.c.id == id).values(**fresh))
            return connection.execute(select(secrets).where(secrets.c.id == id)).first()

        row = await self._database.write(do)
        return None if row is None else _secret(row)

    def used(self, ids: Collection[str], at: datetime) -> asyncio.Future[int]:
        return self._database.run(update(secrets).where(secrets.c.id.in_(ids)).values(used_at=at.timestamp()))

    async def remove(self, project: str, name: str) -> bool:
        """Whether it was there."""
        return await self._database.run(delete(secrets).where(and_(secrets.c.project == project, secrets.c.name == name))) > 0


def _secret(row: Row[Any]) -> Secret:
    return Secret(
        id=row.id,
        name=row.name,
        project=row.project,
        version=row.version,
        tags=json.loads(row.tags),
        created_at=datetime.fromtimestamp(row.created_at, UTC),
        changed_at=datetime.fromtimestamp(row.changed_at, UTC),
        used_at=None if row.used_at is None else datetime.fromtimestamp(row.used_at, UTC),
    )
