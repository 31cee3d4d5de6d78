"""Every change of a sandbox goes through here: memory, row and event together, by the table of life."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from corral.control import lifecycle
from corral.control.deadlines import deadline
from corral.control.events import EventLog
from corral.control.idempotency import Claim
from corral.control.lifecycle import Action
from corral.control.ports import SandboxRows
from corral.control.record import Record, moment
from corral.control.registry import Living, Registry
from corral.errors import NotFound, SandboxEnded
from corral.ids import is_id
from corral.schema.observe import Event
from corral.schema.sandbox import Reason

KEEP = 3600.0
"""Seconds for which a sandbox that has ended can still be looked at."""


class Ledger:
    """Changes are visible in memory at once and stored behind, in their order."""

    def __init__(self, rows: SandboxRows, log: EventLog, clock: Callable[[], float]) -> None:
        self.registry = Registry()
        self.log = log
        self._rows = rows
        self._clock = clock

    def enter(self, living: Living, claim: Claim | None) -> asyncio.Future[None]:
        """A reserved sandbox begins to be made: from now on it is there for all to see."""
        record = living.record
        living.reserved = False
        event = self._event(
            "sandbox.created",
            record,
            actor=record.created_by,
            image=record.image,
            name=record.name,
            tags=dict(record.tags),
            cpu=record.cpu,
            memory=record.memory,
        )
        stored = self._rows.create(record, [event], claim)
        self.log.when_stored(stored, event)
        return stored

    def move(
        self,
        living: Living,
        action: Action,
        *,
        reason: Reason | None = None,
        detail: str | None = None,
        actor: str | None = None,
        **changes: Any,
    ) -> Record:
        """The next state. Raises `InvalidState` or `SandboxEnded` when the table has none."""
        record, now = living.record, self._clock()
        state = lifecycle.after(record.state, action)
        match action:
            case Action.RUN | Action.RESUME:
                changes = {"started_at": now, "deadline": deadline(now, record.timeout), "reason": None, "detail": None, "ended_by": None, **changes}
            case Action.STOP | Action.TERMINATE | Action.FAIL:
                by = None if reason is None else lifecycle.ended_by(reason, actor)
                changes = {"deadline": None, "reason": reason, "detail": detail, "ended_by": by, **changes}
                if state in lifecycle.ENDED:
                    changes["ended_at"] = now
            case Action.PAUSE:
                by = None if reason is None else lifecycle.ended_by(reason, actor)
                changes = {"deadline": None, "reason": reason, "detail": detail, "ended_by": by, **changes}
            case Action.FREEZE | Action.THAW:
                pass
        fresh = replace(record, state=state, **changes)
        told = {"reason": fresh.reason, "detail": fresh.detail} if fresh.reason else {"timing": fresh.timing} if action in (Action.RUN, Action.RESUME) else {}
        self._write(fresh, ("state", *changes), self._event(lifecycle.EVENT[action], fresh, actor=actor or fresh.ended_by, **told))
        return fresh

    def amend(self, living: Living, *, actor: str | None, **changes: Any) -> Record:
        """Change what was asked for: name, tags, times. Raises `Conflict` for a name that is taken."""
        fresh = replace(living.record, **changes)
        told: dict[str, Any] = {"tags": dict(fresh.tags)} if "tags" in changes else {}
        if "deadline" in changes:
            told["deadline"] = None if fresh.deadline is None else moment(fresh.deadline).isoformat()
        self._write(fresh, tuple(changes), self._event("sandbox.updated", fresh, actor=actor, changed=sorted(changes), **told))
        return fresh

    async def decree(self, living: Living, *, actor: str | None, kind: str, data: Mapping[str, Any], **changes: Any) -> Record:
        """A change that must not be forgotten once it was answered: it is on the disk when this returns."""
        fresh = replace(living.record, **changes)
        await self._write(fresh, tuple(changes), self._event(kind, fresh, actor=actor, **data))
        return fresh

    async def settle(self) -> None:
        """What was written until now is there after a power cut too."""
        await self._rows.settle()

    def removed(self, record: Record) -> Record:
        """The node has nothing of it any more."""
        fresh = replace(record, removed=True)
        self._rows.save(fresh, ("removed",), [])
        return fresh

    def find(self, project: str, id_or_name: str) -> Living | None:
        """A living sandbox of this project."""
        living = self.registry.find(project, id_or_name)
        return None if living is None or living.reserved else living

    async def ended(self, project: str, id: str) -> Record:
        """One that has ended a while ago. Raises `NotFound`."""
        record = await self._rows.get(project, id) if is_id(id, "sb") else None
        if record is None or (record.ended_at is not None and record.ended_at < self._clock() - KEEP):
            raise NotFound(f"there is no sandbox {id[:80]}", hint="GET /v1/sandboxes lists those that live; ended ones can be seen by their id for an hour")
        return record

    async def use(self, project: str, id_or_name: str) -> Living:
        """A living sandbox. Raises `SandboxEnded` for one that has ended a while ago, `NotFound` for what was never there."""
        if (living := self.find(project, id_or_name)) is not None:
            return living
        record = await self.ended(project, id_or_name)
        why = f": {record.detail}" if record.detail else ""
        raise SandboxEnded(
            f"the sandbox {record.id} has ended ({record.reason or record.state}{why})",
            hint="create another one",
            details={"reason": record.reason or record.state, "sandbox": record.id},
        )

    def _write(self, record: Record, changed: tuple[str, ...], event: Event) -> asyncio.Future[None]:
        self.registry.put(record)
        stored = self._rows.save(record, changed, [event])
        self.log.when_stored(stored, event)
        return stored

    def _event(self, kind: str, record: Record, *, actor: str | None, **data: Any) -> Event:
        return self.log.next(kind, record.project, sandbox=record.id, actor=actor, data=data)
