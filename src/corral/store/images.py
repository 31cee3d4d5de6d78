"""Rows of images and templates."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, and_, delete, insert, select, update

from corral.control.images import ImageRecord
from corral.control.templates import TemplateRecord
from corral.store.database import Database
from corral.store.tables import images, templates


class ImageRows:
    """Implements `control.ports.ImageRows`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def all(self) -> list[ImageRecord]:
        """The oldest first, so that the newest of one key is the last."""
        query = select(images).order_by(images.c.created_at)
        rows: Sequence[Any] = await self._database.read(lambda connection: connection.execute(query).mappings().all())
        return [ImageRecord(**row) for row in rows]

    def put(self, record: ImageRecord, *, replaces: str | None) -> asyncio.Future[None]:
        """A row, in place of the one with its id and of another one."""
        row, gone = asdict(record), [record.id, *([] if replaces is None else [replaces])]

        def do(connection: Connection) -> None:
            connection.execute(delete(images).where(and_(images.c.project == record.project, images.c.id.in_(gone))))
            connection.execute(insert(images), row)

        return self._database.write(do)

    def use(self, record: ImageRecord) -> asyncio.Future[int]:
        mine = and_(images.c.project == record.project, images.c.id == record.id)
        return self._database.run(update(images).where(mine).values(used_at=record.used_at, kept=record.kept))

    def remove(self, project: str, id: str) -> asyncio.Future[int]:
        return self._database.run(delete(images).where(and_(images.c.project == project, images.c.id == id)))


class TemplateRows:
    """Implements `control.ports.TemplateRows`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def all(self) -> list[TemplateRecord]:
        rows: Sequence[Any] = await self._database.read(lambda connection: connection.execute(select(templates)).mappings().all())
        return [TemplateRecord(**row) for row in rows]

    def put(self, record: TemplateRecord) -> asyncio.Future[None]:
        """A tag's row, in place of what it was."""
        row = asdict(record)

        def do(connection: Connection) -> None:
            connection.execute(delete(templates).where(_is(record.project, record.name, record.tag)))
            connection.execute(insert(templates), row)

        return self._database.write(do)

    def remove(self, project: str, name: str, tag: str | None) -> asyncio.Future[int]:
        return self._database.run(delete(templates).where(_is(project, name, tag)))


def _is(project: str, name: str, tag: str | None) -> Any:
    mine = and_(templates.c.project == project, templates.c.name == name)
    return mine if tag is None else and_(mine, templates.c.tag == tag)
