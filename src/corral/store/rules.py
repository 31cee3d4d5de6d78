"""Rows of what was decided for a project's sandboxes once and for all."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import delete, insert, select

from corral.schema.egress import KeptRule, Rule
from corral.store.database import Database
from corral.store.tables import egress_rules


class RuleRows:
    """Implements `control.ports.RuleRows`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def all(self) -> list[tuple[str, KeptRule]]:
        """With their projects, the oldest first."""
        rows = await self._database.read(lambda connection: connection.execute(select(egress_rules).order_by(egress_rules.c.id)).all())
        return [(row.project, _kept(row.id, Rule.model_validate_json(row.rule), row.created_at, row.created_by)) for row in rows]

    async def add(self, project: str, rule: Rule, *, at: float, by: str) -> KeptRule:
        row = {"project": project, "rule": rule.model_dump_json(exclude_defaults=True), "created_at": at, "created_by": by}
        id = await self._database.write(lambda connection: connection.execute(insert(egress_rules), row).inserted_primary_key)
        assert id is not None
        return _kept(id[0], rule, at, by)

    async def remove(self, project: str, id: str) -> None:
        await self._database.run(delete(egress_rules).where(egress_rules.c.project == project, egress_rules.c.id == int(id)))


def _kept(id: int, rule: Rule, at: float, by: str) -> KeptRule:
    return KeptRule(id=str(id), rule=rule, decided_at=datetime.fromtimestamp(at, UTC), decided_by=by)
