"""Snapshots of E2B: what a sandbox is at one moment, with its processes and their memory unless only its files are wanted. New sandboxes begin there."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from corral.api import pages
from corral.control.record import Record
from corral.control.roles import Permission
from corral.control.shelf import SnapshotRecord
from corral.errors import Unsupported
from corral.facades.e2b.body import Body
from corral.facades.e2b.refusal import Refused
from corral.facades.e2b.rest.call import Call, living, missing, told
from corral.facades.e2b.rest.recipe import names_of
from corral.facades.e2b.rest.shown import state

_PAGE = 100


class NewSnapshot(Body):
    """POST /sandboxes/{id}/snapshots. `memory`: True: refused where it can't be kept; None: kept where it can."""

    name: str | None = None
    memory: bool | None = None


async def create(call: Call) -> Response:
    """The sandbox goes on. A snapshot that had the name is gone when the new one is there; what was made of it stays."""
    call.actor.require(Permission.USE)
    wanted = await call.body(NewSnapshot)
    name = None if wanted.name is None else _name(call, wanted.name)
    record = await call.sandbox()
    if state(record) != "running":
        raise missing(record.id)
    return told(_shown(await living(record.id, _made(call, record, name, memory=wanted.memory))), 201)


async def _made(call: Call, record: Record, name: str | None, *, memory: bool | None) -> SnapshotRecord:
    create = call.services.snapshots.create
    if memory is not False:
        try:
            return (await create(call.actor, record.id, name, memory=True, displace=True))[0]
        except Unsupported:
            if memory:
                raise
    return (await create(call.actor, record.id, name, displace=True))[0]


def _name(call: Call, given: str) -> str:
    name, tags = names_of(given, [], call.actor.project)
    if tags != ["latest"]:
        raise Refused(400, f"name: {given[:80]!r}: snapshots have no tags but `default` here; put it into the name")
    return name


async def listing(call: Call) -> Response:
    """The newest first, in pages."""
    call.actor.require(Permission.LOOK)
    limit = call.number("limit", _PAGE, most=_PAGE) or _PAGE
    before, name = pages.position(call.query("nextToken")), call.query("name")
    found = call.services.snapshots.page(call.actor.project, sandbox=call.query("sandboxID"), before=before, limit=10_000)
    if name is not None:
        plain = name.removesuffix(":default")
        found = [one for one in found if plain == one.id or (one.name is not None and _name(call, plain) == one.name)]
    headers = {"X-Next-Token": pages.cursor(found[limit - 1].created_at, found[limit - 1].id)} if len(found) > limit else None
    return told([_shown(one) for one in found[:limit]], headers=headers)


def _shown(record: SnapshotRecord) -> dict[str, Any]:
    return {"snapshotID": f"{record.name or record.id}:default", "names": [record.name] if record.name is not None else []}
