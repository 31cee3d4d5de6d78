"""/v1/secrets: values that sandboxes, or the proxy before them, are given. No answer ever holds one."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from corral.api.idempotent import idempotent
from corral.api.route import JSON, Actor, Services, may, router
from corral.control.idempotency import Answer, Claim
from corral.control.roles import Permission
from corral.errors import InvalidArgument
from corral.schema.secret import Secret, SecretCreate, Secrets

routes = router("secrets", 409, 429)


@routes.post("/v1/secrets", status_code=201, response_model=Secret)
async def create(request: Request, services: Services, actor: Actor, wanted: SecretCreate) -> Response:
    """A new secret. Its value can be used from now on, and never read again."""

    async def make(_claim: Claim | None) -> Answer:
        return Answer(201, (await services.secrets.create(actor, wanted)).model_dump_json().encode())

    # Not even a digest of a request with a value in it is written down.
    answer = await idempotent(request, services, actor, make, secret=True)
    return Response(answer.body, answer.status, media_type=JSON)


@routes.get("/v1/secrets", response_model=Secrets)
@may(Permission.LOOK)
async def listing(services: Services, actor: Actor) -> Secrets:
    """The project's secrets by name, without their values."""
    return Secrets(secrets=await services.secrets.all(actor.project))


@routes.get("/v1/secrets/{name}", response_model=Secret)
@may(Permission.LOOK)
async def get(services: Services, actor: Actor, name: str) -> Secret:
    """One secret, without its value."""
    return await services.secrets.get(actor.project, name)


@routes.put("/v1/secrets/{name}", response_model=Secret)
async def change(services: Services, actor: Actor, name: str, wanted: SecretCreate) -> Secret:
    """Give it another value. Egress rules use it at once; environment variables have it from a sandbox's next start on."""
    if wanted.name != name:
        raise InvalidArgument("name: a secret can't be renamed", hint="send the same name as in the path", details={"field": "name"})
    return await services.policies.change_secret(actor, wanted)


@routes.delete("/v1/secrets/{name}", status_code=204)
async def delete(services: Services, actor: Actor, name: str) -> None:
    """Forget it. Refused while a living sandbox uses it."""
    await services.policies.delete_secret(actor, name)
