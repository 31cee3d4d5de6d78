"""/templates of E2B: snapshots and images under the name of templates."""

from __future__ import annotations

from starlette.responses import Response

from corral.control.roles import Permission
from corral.errors import NotFound
from corral.facades.e2b.refusal import Refused
from corral.facades.e2b.rest.call import Call
from corral.facades.e2b.rest.sandboxes import image


async def delete(call: Call) -> Response:
    """A snapshot; sandboxes made from it go on."""
    call.actor.require(Permission.USE)
    ref = image(call.part("template"))
    try:
        await call.services.snapshots.delete(call.actor, ref, cascade=True)
    except NotFound:
        raise Refused(404, f"template '{ref[:200]}' not found") from None
    return Response(status_code=204)
