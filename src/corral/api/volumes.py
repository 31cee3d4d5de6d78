"""/v1/volumes: storage that sandboxes share and that outlives them."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from corral.api.idempotent import idempotent
from corral.api.route import JSON, Actor, Services, may, router
from corral.control.idempotency import Answer, Claim
from corral.control.quota import Use
from corral.control.roles import Permission
from corral.errors import NotFound
from corral.schema.volume import Volume, VolumeCreate, Volumes

routes = router("volumes", 409, 429)


@routes.post("/v1/volumes", status_code=201, response_model=Volume)
async def create(request: Request, services: Services, actor: Actor, wanted: VolumeCreate) -> Response:
    """Make an empty volume. `Idempotency-Key` makes it safe to repeat."""

    async def make(claim: Claim | None) -> Answer:
        services.sandboxes.quotas.check(actor.project, Use(disk=wanted.size))
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
