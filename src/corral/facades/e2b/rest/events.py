"""/events/sandboxes of E2B: the lives of sandboxes, out of Corral's own events."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from typing import Any

from starlette.responses import Response

from corral.control.roles import Permission
from corral.facades.e2b.refusal import Refused
from corral.facades.e2b.rest.call import Call, told
from corral.schema.observe import Event

_PAGE = 10
_MOST = 100
_READ = 10_000
_IDS = uuid.UUID("0f3d1c62-8a0e-4f0b-9a58-4f6f6a1f7f4e")
_TYPES = {
    "sandbox.created": "created",
    "sandbox.updated": "updated",
    "sandbox.paused": "paused",
    "sandbox.stopped": "paused",
    "sandbox.resumed": "resumed",
    "sandbox.running": "resumed",
    "sandbox.terminated": "killed",
    "sandbox.failed": "killed",
}


async def listing(call: Call) -> Response:
    """Of all sandboxes, or of one; the newest first unless `orderAsc`. `types`: only these."""
    call.actor.require(Permission.LOOK)
    limit, offset = call.number("limit", _PAGE, most=_MOST), call.number("offset", 0, most=1 << 31)
    wanted = {word for text in call.request.query_params.getlist("types") for word in text.split(",") if word}
    if unknown := wanted - {f"sandbox.lifecycle.{word}" for word in _TYPES.values()}:
        raise Refused(400, f"types: there are no events {min(unknown)[:80]!r}")
    found = [one for one in _lives(await _all(call, call.request.path_params.get("sandbox"))) if not wanted or one["type"] in wanted]
    if call.query("orderAsc") != "true":
        found.reverse()
    return told(found[offset : offset + limit])


async def _all(call: Call, sandbox: str | None) -> list[Event]:
    events: list[Event] = []
    while True:
        page = await call.services.events.since(call.actor.project, after=events[-1].seq if events else 0, sandbox=sandbox, kinds=_TYPES, limit=_READ)
        events += page
        if len(page) < _READ:
            return events


def _lives(events: Iterable[Event]) -> Iterator[dict[str, Any]]:
    """What E2B would have told. That a sandbox runs is its creation the first time, and then that it goes on."""
    templates: dict[str, str] = {}
    stopped: set[str] = set()
    for event in events:
        if event.sandbox is None or (kind := _TYPES.get(event.kind)) is None:
            continue
        if event.kind == "sandbox.created":
            templates[event.sandbox] = str(event.data.get("image", ""))
        elif event.kind == "sandbox.stopped":
            stopped.add(event.sandbox)
        elif event.kind == "sandbox.running":
            if event.sandbox not in stopped:
                continue
            stopped.discard(event.sandbox)
        yield {
            "version": "v1",
            "id": str(uuid.uuid5(_IDS, str(event.seq))),
            "type": f"sandbox.lifecycle.{kind}",
            "eventData": event.data or None,
            "sandboxBuildId": "",
            "sandboxExecutionId": str(uuid.uuid5(_IDS, event.sandbox)),
            "sandboxId": event.sandbox,
            "sandboxTeamId": event.project,
            "sandboxTemplateId": templates.get(event.sandbox, ""),
            "timestamp": event.at.isoformat().replace("+00:00", "Z"),
        }
