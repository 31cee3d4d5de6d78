"""Snapshots of E2B: an image made of a sandbox. What is in them is its files; what its processes had in memory is not."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from corral.api import pages
from corral.control.roles import Permission
from corral.control.shelf import SnapshotRecord
from corral.facades.e2b.body import Body
from corral.facades.e2b.refusal import Refused
from corral.facades.e2b.rest.call import Call, living, told

_PAGE = 100


class NewSnapshot(Body):
    """POST /sandboxes/{id}/snapshots."""

    name: str | None = None
    memory: bool | None = None


async def create(call: Call) -> Response:
    """A snapshot of the files as they are now; the sandbox goes on."""
    call.actor.require(Permission.USE)
    wanted = await call.body(NewSnapshot)
    if wanted.memory:
        raise Refused(400, "memory: snapshots keep files only; leave it out, or pause the sandbox to keep its memory")
    record = await call.sandbox()
    made, _ = await living(record.id, call.services.snapshots.create(call.actor, record.id, wanted.name))
    return told(_shown(made), 201)


async def listing(call: Call) -> Response:
    """The newest first, in pages."""
    call.actor.require(Permission.LOOK)
    limit = call.number("limit", _PAGE, most=_PAGE) or _PAGE
    before, name = pages.position(call.query("nextToken")), call.query("name")
    found = call.services.snapshots.page(call.actor.project, sandbox=call.query("sandboxID"), before=before, limit=10_000)
    if name is not None:
        found = [one for one in found if name.removesuffix(":default") in (one.name, one.id)]
    headers = {"X-Next-Token": pages.cursor(found[limit - 1].created_at, found[limit - 1].id)} if len(found) > limit else None
    return told([_shown(one) for one in found[:limit]], headers=headers)


def _shown(record: SnapshotRecord) -> dict[str, Any]:
    return {"snapshotID": record.id, "names": [f"{record.name}:default"] if record.name is not None else []}
