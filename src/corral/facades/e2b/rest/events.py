"""/events/sandboxes of E2B: the lives of sandboxes, out of Corral's own events."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from starlette.responses import Response

from corral.control.events import EventLog
from corral.control.roles import Permission
from corral.facades.e2b.refusal import Refused
from corral.facades.e2b.rest.call import Call, told
from corral.facades.e2b.rest.shown import template
from corral.schema.observe import Event
from corral.schema.webhook import LifeKind

_PAGE = 10
_MOST = 100
_READ = 10_000
_IDS = uuid.UUID("0f3d1c62-8a0e-4f0b-9a58-4f6f6a1f7f4e")
TYPES: dict[LifeKind, str] = {
    "sandbox.created": "sandbox.lifecycle.created",
    "sandbox.updated": "sandbox.lifecycle.updated",
    "sandbox.paused": "sandbox.lifecycle.paused",
    "sandbox.stopped": "sandbox.lifecycle.paused",
    "sandbox.resumed": "sandbox.lifecycle.resumed",
    "sandbox.running": "sandbox.lifecycle.resumed",
    "snapshot.created": "sandbox.lifecycle.checkpointed",
    "sandbox.terminated": "sandbox.lifecycle.killed",
    "sandbox.failed": "sandbox.lifecycle.killed",
}
"""What E2B calls it."""


async def listing(call: Call) -> Response:
    """Of all sandboxes, or of one; the newest first unless `orderAsc`. `types`: only these."""
    call.actor.require(Permission.LOOK)
    limit, offset = call.number("limit", _PAGE, most=_MOST), call.number("offset", 0, most=1 << 31)
    wanted = types({word for text in call.request.query_params.getlist("types") for word in text.split(",") if word}, "types")
    past = await history(call.services.events, call.actor.project, call.request.path_params.get("sandbox"))
    found = [one for one in lives(past) if not wanted or one["type"] in wanted]
    if call.query("orderAsc") != "true":
        found.reverse()
    return told(found[offset : offset + limit])


def types(given: Iterable[str], where: str) -> set[str]:
    """Raises `Refused` for one that there is not."""
    if unknown := {*given} - {*TYPES.values()}:
        raise Refused(400, f"{where}: there are no events {min(unknown)[:80]!r}")
    return {*given}


async def history(log: EventLog, project: str, sandbox: str | None) -> list[Event]:
    """All that there is of these kinds, the oldest first."""
    events: list[Event] = []
    while True:
        page = await log.since(project, after=events[-1].seq if events else 0, sandbox=sandbox, kinds=TYPES, limit=_READ)
        events += page
        if len(page) < _READ:
            return events


@dataclass
class _Life:
    """What is known of a sandbox at one moment."""

    template: str = ""
    metadata: dict[str, str] = field(default_factory=dict[str, str])
    cpu: float | None = None
    memory: int | None = None
    began: datetime | None = None
    """When it was last started or resumed, of one that runs."""
    stopped: bool = False

    def execution(self, until: datetime) -> dict[str, Any] | None:
        """How long it ran at a stretch (milliseconds), and with what (MiB)."""
        if self.began is None:
            return None
        took = round((until - self.began).total_seconds() * 1000)
        return {"started_at": _time(self.began), "vcpu_count": self.cpu, "memory_mb": self.memory, "execution_time": took}


def lives(events: Iterable[Event]) -> Iterator[dict[str, Any]]:
    """What E2B would have told. That a sandbox runs is a part of its creation the first time, and then that it goes on."""
    known: dict[str, _Life] = {}
    for event in events:
        if event.sandbox is None or event.kind not in TYPES:
            continue
        life = known.setdefault(event.sandbox, _Life())
        more: dict[str, Any] = {}
        match event.kind:
            case "sandbox.created":
                life.template, life.metadata = str(event.data.get("image", "")), event.data.get("tags", {})
                life.cpu, life.memory = event.data.get("cpu"), event.data.get("memory")
            case "sandbox.running" | "sandbox.resumed":
                first, life.began = event.kind == "sandbox.running" and not life.stopped, event.at
                life.stopped = False
                if first:
                    continue
            case "sandbox.updated":
                life.metadata = event.data.get("tags", life.metadata)
                if (deadline := event.data.get("deadline")) is not None:
                    more["set_timeout"] = _time(datetime.fromisoformat(deadline))
            case "snapshot.created":
                pass
            case _:
                life.stopped = True
                if (execution := life.execution(event.at)) is not None:
                    more["execution"] = execution
                life.began = None
        yield {
            "version": "v2",
            "id": id_of(event),
            "type": TYPES[event.kind],
            "eventData": {"sandbox_metadata": dict(life.metadata), **more},
            "sandboxBuildId": "",
            "sandboxExecutionId": str(uuid.uuid5(_IDS, event.sandbox)),
            "sandboxId": event.sandbox,
            "sandboxTeamId": event.project,
            "sandboxTemplateId": template(life.template),
            "timestamp": _time(event.at),
        }


def id_of(event: Event) -> str:
    """E2B's are UUIDs."""
    return str(uuid.uuid5(_IDS, str(event.seq)))


def _time(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
