"""/v1/keys: credentials of projects. For admins."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from corral.api.idempotent import idempotent
from corral.api.route import JSON, Actor, Services, may, router
from corral.control.idempotency import Answer, Claim
from corral.control.roles import Permission
from corral.schema.account import KeyCreate, Keys, NewKey

routes = router("keys", 409)


@routes.post("/v1/keys", status_code=201, response_model=NewKey)
@may(Permission.ADMINISTER)
async def create(request: Request, services: Services, actor: Actor, wanted: KeyCreate) -> Response:
    """A new key. Its `value` is in this answer and nowhere else."""

    async def make(_claim: Claim | None) -> Answer:
        return Answer(201, (await services.accounts.add_key(wanted)).model_dump_json().encode())

    answer = await idempotent(request, services, actor, make, secret=True)
    return Response(answer.body, answer.status, {"Cache-Control": "no-store"}, JSON)


@routes.get("/v1/keys", response_model=Keys)
@may(Permission.ADMINISTER)
async def listing(services: Services, actor: Actor) -> Keys:  # noqa: ARG001 - an admin's key is needed
    """All living keys, without their values."""
    return Keys(keys=services.accounts.keys())


@routes.delete("/v1/keys/{key}", status_code=204)
@may(Permission.ADMINISTER)
async def delete(services: Services, actor: Actor, key: str) -> None:  # noqa: ARG001 - an admin's key is needed
    """Revoke it, at once."""
    await services.accounts.revoke(key)
