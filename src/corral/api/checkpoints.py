"""/v1/sandboxes/{sandbox}/checkpoints, and going back to one."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from corral.api.idempotent import idempotent
from corral.api.route import JSON, Actor, Services, may, router
from corral.api.snapshots import again
from corral.control.idempotency import Answer, Claim
from corral.control.roles import Permission
from corral.schema.sandbox import Sandbox
from corral.schema.snapshot import CheckpointCreate, Checkpoints, Diff, Merge, MergeRequest, Rewind, Snapshot

routes = router("checkpoints", 409, 410, 429, 507)


class Moments(BaseModel):
    """What GET /v1/sandboxes/{sandbox}/diff may be asked."""

    model_config = ConfigDict(extra="forbid")

    before: str | None = Field(None, min_length=1, max_length=63, description="name or id of a checkpoint, or of a snapshot")
    after: str | None = Field(None, min_length=1, max_length=63, description="the same")
    text: bool = Field(False, description="with a unified diff of what is text")
    limit: int = Field(10_000, ge=1, le=100_000, description="greatest number of changes")


@routes.post("/v1/sandboxes/{sandbox}/checkpoints", status_code=201, response_model=Snapshot)
async def create(request: Request, services: Services, actor: Actor, sandbox: str, wanted: CheckpointCreate) -> Response:
    """Keep its disk as it is now in its own history. The sandbox goes on. `Idempotency-Key` makes it safe to repeat."""

    async def make(claim: Claim | None) -> Answer:
        record, timing = await services.snapshots.checkpoint(actor, sandbox, wanted.name, claim=claim)
        return Answer(201, record.show(timing=timing).model_dump_json().encode())

    answer = await idempotent(request, services, actor, make, again=again(services, actor))
    return Response(answer.body, answer.status, None, JSON)


@routes.get("/v1/sandboxes/{sandbox}/checkpoints", response_model=Checkpoints)
@may(Permission.LOOK)
async def listing(services: Services, actor: Actor, sandbox: str) -> Checkpoints:
    """Its checkpoints, the oldest first."""
    return Checkpoints(checkpoints=[record.show() for record in await services.snapshots.checkpoints(actor.project, sandbox)])


@routes.delete("/v1/sandboxes/{sandbox}/checkpoints/{checkpoint}", response_model=Snapshot)
async def delete(services: Services, actor: Actor, sandbox: str, checkpoint: str) -> Snapshot:
    """Forget a checkpoint, by its name or id."""
    return (await services.snapshots.delete_checkpoint(actor, sandbox, checkpoint)).show()


@routes.get("/v1/sandboxes/{sandbox}/diff", response_model=Diff)
async def diff(services: Services, actor: Actor, sandbox: str, query: Annotated[Moments, Query()]) -> Diff:
    """What changed on its disk between two checkpoints or snapshots; without `before` since its image, without `after` until now."""
    return await services.snapshots.diff(actor.project, sandbox, query.before, query.after, text=query.text, limit=query.limit)


@routes.post("/v1/sandboxes/{sandbox}/merge", response_model=Merge)
async def merge(services: Services, actor: Actor, sandbox: str, wanted: MergeRequest) -> Merge:
    """Take over what a snapshot of a fork has changed since it went its own way. What both have changed is a conflict: nothing is overwritten unless that is asked for."""
    return await services.snapshots.merge(actor, sandbox, wanted)


@routes.post("/v1/sandboxes/{sandbox}/rewind", response_model=Sandbox)
async def rewind(services: Services, actor: Actor, sandbox: str, wanted: Rewind) -> Sandbox:
    """Put its disk back to a checkpoint; what it is now is kept as a checkpoint first. Its processes end, and if it ran it runs again."""
    return (await services.snapshots.rewind(actor, sandbox, wanted.checkpoint)).show()
