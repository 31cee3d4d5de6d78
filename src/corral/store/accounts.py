"""Rows of projects and keys."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from corral.schema.account import Key, Project, Role
from corral.store.database import Database
from corral.store.tables import egress_rules, events, idempotency, keys, projects, sandbox_tags, sandboxes, secrets


class AccountRows:
    """Implements `control.ports.AccountRows`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def projects(self) -> list[Project]:
        rows = await self._database.read(lambda connection: connection.execute(select(projects).order_by(projects.c.created_at)).all())
        return [_project(row) for row in rows]

    async def add_project(self, project: Project) -> None:
        row = {**project.model_dump(), "created_at": project.created_at.timestamp()}
        await self._database.run(insert(projects), row)

    async def remove_project(self, name: str) -> None:
        """With all that is only its own: a later project of the same name begins with nothing."""

        def do(connection: Connection) -> None:
            of_it = sandboxes.c.project == name, sandboxes.c.removed.is_(True)
            connection.execute(delete(sandbox_tags).where(sandbox_tags.c.sandbox.in_(select(sandboxes.c.id).where(*of_it))))
            connection.execute(delete(sandboxes).where(*of_it))
            # The numbers of its events stay used: they are nobody's, until they are too old.
            connection.execute(update(events).where(events.c.project == name).values(project=""))
            for table in (secrets, egress_rules, idempotency):
                connection.execute(delete(table).where(table.c.project == name))
            connection.execute(delete(projects).where(projects.c.name == name))

        await self._database.write(do)

    async def keys(self) -> list[tuple[Key, str]]:
        """Those that are not revoked, with the digests of their values."""
        query = select(keys).where(keys.c.revoked_at.is_(None)).order_by(keys.c.created_at)
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return [(_key(row), row.digest) for row in rows]

    async def add_key(self, key: Key, digest: str) -> None:
        row = {"id": key.id, "name": key.name, "project": key.project, "role": key.role, "digest": digest, "created_at": key.created_at.timestamp()}
        await self._database.run(insert(keys), {**row, "public_key": key.public_key})

    async def revoke_key(self, id: str, at: datetime) -> None:
        await self._database.run(update(keys).where(keys.c.id == id).values(revoked_at=at.timestamp()))


def _project(row: Row[Any]) -> Project:
    return Project(
        name=row.name,
        created_at=datetime.fromtimestamp(row.created_at, UTC),
        max_sandboxes=row.max_sandboxes,
        max_cpu=row.max_cpu,
        max_memory=row.max_memory,
        max_disk=row.max_disk,
    )


def _key(row: Row[Any]) -> Key:
    return Key(
        id=row.id, name=row.name, project=row.project, role=Role(row.role), created_at=datetime.fromtimestamp(row.created_at, UTC), public_key=row.public_key
    )
