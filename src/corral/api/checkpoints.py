"""/v1/sandboxes/{sandbox}/checkpoints, and going back to one."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from corral.api.idempotent import idempotent
from corral.api.route import JSON, Actor, Services, may, router
from corral.api.snapshots import again
from corral.control.idempotency import Answer, Claim
from corral.control.roles import Permission
from corral.schema.sandbox import Sandbox
from corral.schema.snapshot import CheckpointCreate, Checkpoints, Rewind, Snapshot

routes = router("checkpoints", 409, 410, 429, 507)


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


@routes.post("/v1/sandboxes/{sandbox}/rewind", response_model=Sandbox)
async def rewind(services: Services, actor: Actor, sandbox: str, wanted: Rewind) -> Sandbox:
    """Put its disk back to a checkpoint; what it is now is kept as a checkpoint first. Its processes end, and if it ran it runs again."""
    return (await services.snapshots.rewind(actor, sandbox, wanted.checkpoint)).show()
