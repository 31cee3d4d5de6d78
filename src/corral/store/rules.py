"""Rows of what was decided for a project's sandboxes once and for all."""

from __future__ import annotations

from sqlalchemy import insert, select

from corral.schema.egress import Rule
from corral.store.database import Database
from corral.store.tables import egress_rules


class RuleRows:
    """Implements `control.ports.RuleRows`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def all(self) -> list[tuple[str, Rule]]:
        """With their projects, the oldest first."""
        rows = await self._database.read(lambda connection: connection.execute(select(egress_rules).order_by(egress_rules.c.id)).all())
        return [(row.project, Rule.model_validate_json(row.rule)) for row in rows]

    async def add(self, project: str, rule: Rule, *, at: float, by: str) -> None:
        row = {"project": project, "rule": rule.model_dump_json(exclude_defaults=True), "created_at": at, "created_by": by}
        await self._database.run(insert(egress_rules), row)
