"""/v1/sandboxes/{id}/ssh: how to log in by SSH. SSH itself is served by another process."""

from __future__ import annotations

from starlette.responses import Response

from corral.api.route import JSON, Actor, Services, router
from corral.schema.ssh import SshAccess

routes = router("ssh", 409, 410)


@routes.post("/v1/sandboxes/{sandbox}/ssh", status_code=201, response_model=SshAccess)
async def access(services: Services, actor: Actor, sandbox: str) -> Response:
    """Where SSH is, the key by which it is known, and a password that is good for one login within ten minutes."""
    answer = await services.logins.access(actor, sandbox)
    return Response(answer.model_dump_json(), 201, {"Cache-Control": "no-store"}, JSON)
