"""/sandboxes/{id}/fork of E2B: sandboxes that go on from where one is."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from starlette.responses import Response

from corral.control.record import Record
from corral.control.roles import Permission
from corral.errors import CorralError
from corral.facades.e2b.body import Body
from corral.facades.e2b.refusal import Refused, sentence, status_of
from corral.facades.e2b.rest.call import Call, living, shown_access, told
from corral.facades.e2b.rest.lives import until
from corral.facades.e2b.rest.shown import state
from corral.schema.fork import MOST, SandboxFork


class Fork(Body):
    """POST …/fork."""

    count: int = Field(default=1, ge=1, le=MOST)
    timeout: int = Field(default=15, gt=0)


async def fork(call: Call) -> Response:
    """For each fork how to reach it, or why there is none."""
    call.actor.require(Permission.USE)
    wanted = await call.body(Fork)
    record = await call.sandbox()
    if state(record) == "paused":
        raise Refused(409, f"Sandbox '{record.id}' is paused and cannot be forked; resume it first")
    made = await living(record.id, call.services.sandboxes.forks.fork(call.actor, record.id, SandboxFork(count=wanted.count, children=None)))
    return told([await _shown(call, one, wanted.timeout) for one in made], 201)


async def _shown(call: Call, made: Record | CorralError, timeout: int) -> dict[str, Any]:
    try:
        if isinstance(made, CorralError):
            raise made
        made = await call.services.sandboxes.update(call.actor, made.id, until(timeout))
        return {"sandbox": await shown_access(call, made)}
    except CorralError as error:
        # Also of one that has ended since: the others are there all the same.
        return {"error": {"code": status_of(error), "message": sentence(error)}}
