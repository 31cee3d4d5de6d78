"""Rows of Idempotency-Keys and what was answered."""

from __future__ import annotations

import asyncio

from sqlalchemy import ColumnElement, Connection, delete, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from corral.control.idempotency import REMEMBERED, Answer, Claim, Kept
from corral.store.database import Database
from corral.store.tables import idempotency


def claimed(connection: Connection, claim: Claim, subject: str, at: float) -> None:
    """What a key's request made, as a part of the change that makes it."""
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    values = {"fingerprint": claim.fingerprint, "at": at, "subject": subject, "status": None, "body": None}
    statement = dialect.insert(idempotency).values(project=claim.project, key=claim.key, **values)
    # The same key may stand for a create that failed, or is too old to count.
    connection.execute(statement.on_conflict_do_update(index_elements=["project", "key"], set_=values))


class ReplayRows:
    """Implements `control.ports.ReplayRows`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def all(self) -> list[Kept]:
        """The newest, oldest first."""
        query = select(idempotency).order_by(idempotency.c.at.desc()).limit(REMEMBERED)
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return [
            Kept(Claim(row.project, row.key, row.fingerprint), row.at, row.subject, None if row.body is None else Answer(row.status, row.body))
            for row in reversed(rows)
        ]

    def answered(self, claim: Claim, answer: Answer) -> asyncio.Future[int]:
        """Keep the answer to a claim that was written when its sandbox was."""
        return self._database.run(update(idempotency).where(*_of(claim)).values(status=answer.status, body=answer.body))

    def add(self, kept: Kept) -> asyncio.Future[None]:
        """Keep a claim and its answer."""
        row = {"project": kept.claim.project, "key": kept.claim.key, "fingerprint": kept.claim.fingerprint, "at": kept.at, "subject": kept.subject}
        answer = {} if kept.answer is None else {"status": kept.answer.status, "body": kept.answer.body}

        def do(connection: Connection) -> None:
            connection.execute(delete(idempotency).where(*_of(kept.claim)))
            connection.execute(insert(idempotency), {**row, **answer})

        return self._database.write(do)

    def drop(self, claim: Claim) -> asyncio.Future[int]:
        """What it made has failed: it may be tried again."""
        return self._database.run(delete(idempotency).where(*_of(claim)))

    async def forget(self, before: float) -> int:
        """Delete those older than this moment."""
        return await self._database.run(delete(idempotency).where(idempotency.c.at < before))


def _of(claim: Claim) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return idempotency.c.project == claim.project, idempotency.c.key == claim.key
