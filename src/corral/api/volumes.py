"""/v1/volumes: storage that sandboxes share and that outlives them."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from corral.api.idempotent import idempotent
from corral.api.route import JSON, Actor, Services, may, router
from corral.control.idempotency import Answer, Claim
from corral.control.quota import Use
from corral.control.roles import Permission
from corral.errors import NotFound
from corral.schema.sandbox import Sandbox
from corral.schema.volume import Volume, VolumeAttach, VolumeCreate, VolumeMount, Volumes

routes = router("volumes", 409, 410, 429)


class Detachment(BaseModel):
    """How DELETE /v1/sandboxes/{sandbox}/volumes must be asked."""

    model_config = ConfigDict(extra="forbid")

    path: str = Field(max_length=1024, description="where it appears")


@routes.post("/v1/volumes", status_code=201, response_model=Volume)
async def create(request: Request, services: Services, actor: Actor, wanted: VolumeCreate) -> Response:
    """Make an empty volume, or a copy of another. `Idempotency-Key` makes it safe to repeat."""

    async def make(claim: Claim | None) -> Answer:
        services.sandboxes.quotas.check(actor.project, Use(disk=services.volumes.size(actor.project, wanted)))
        record = await services.volumes.create(actor, wanted, claim=claim)
        return Answer(201, services.volumes.show(record).model_dump_json().encode())

    async def again(id: str) -> Answer | None:
        try:
            record = services.volumes.get(actor.project, id)
        except NotFound:
            return None
        return Answer(201, services.volumes.show(record).model_dump_json().encode())

    answer = await idempotent(request, services, actor, make, again=again)
    return Response(answer.body, answer.status, None, JSON)


@routes.get("/v1/volumes", response_model=Volumes)
@may(Permission.LOOK)
async def listing(services: Services, actor: Actor) -> Volumes:
    """The project's, by name."""
    return Volumes(volumes=[services.volumes.show(record) for record in services.volumes.of(actor.project)])


@routes.get("/v1/volumes/{volume}", response_model=Volume)
@may(Permission.LOOK)
async def get(services: Services, actor: Actor, volume: str) -> Volume:
    """One volume, by its name or id."""
    return services.volumes.show(services.volumes.get(actor.project, volume))


@routes.delete("/v1/volumes/{volume}", response_model=Volume)
async def delete(services: Services, actor: Actor, volume: str) -> Volume:
    """Delete it with everything in it. Refused while a living sandbox has it."""
    return services.volumes.show(await services.volumes.delete(actor, volume))


@routes.post("/v1/sandboxes/{sandbox}/volumes", response_model=Sandbox)
async def attach(services: Services, actor: Actor, sandbox: str, wanted: VolumeAttach) -> Sandbox:
    """Have a volume appear in a sandbox that runs, at once, or in one that is stopped, when it starts."""
    mount = VolumeMount(volume=wanted.volume, read_only=wanted.read_only, sub_path=wanted.sub_path)
    return (await services.attachments.attach(actor, sandbox, wanted.path, mount)).show()


@routes.delete("/v1/sandboxes/{sandbox}/volumes", response_model=Sandbox)
async def detach(services: Services, actor: Actor, sandbox: str, query: Annotated[Detachment, Query()]) -> Sandbox:
    """Take a volume away from a sandbox. What its programs have open there they may use on."""
    return (await services.attachments.detach(actor, sandbox, query.path)).show()
