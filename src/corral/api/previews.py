"""/v1/sandboxes/{id}/previews: where ports of sandboxes are seen, and who may see them. The previews themselves are served by another process."""

from __future__ import annotations

from corral.api.route import Actor, Services, may, router
from corral.control.roles import Permission
from corral.errors import InvalidArgument
from corral.schema.preview import Held, Hold, Link, LinkCreate, Preview, PreviewChange, PreviewToken

routes = router("previews", 409, 410)


@routes.get("/v1/sandboxes/{sandbox}/previews/{port}", response_model=Preview)
@may(Permission.LOOK)
async def get(services: Services, actor: Actor, sandbox: str, port: str) -> Preview:
    """The URL of a port. Nothing need listen on it yet."""
    return await services.previews.get(actor.project, sandbox, _number(port))


@routes.put("/v1/sandboxes/{sandbox}/previews/{port}", response_model=Preview)
async def change(services: Services, actor: Actor, sandbox: str, port: str, wanted: PreviewChange) -> Preview:
    """Make a port public or private again, or have its server told another Host."""
    return await services.previews.change(actor, sandbox, _number(port), wanted)


@routes.post("/v1/sandboxes/{sandbox}/previews/{port}/links", response_model=Link, status_code=201)
async def link(services: Services, actor: Actor, sandbox: str, port: str, wanted: LinkCreate) -> Link:
    """A URL that opens a port without a key, for some time."""
    return await services.previews.link(actor, sandbox, _number(port), wanted)


@routes.get("/v1/sandboxes/{sandbox}/preview-token", response_model=PreviewToken)
async def token(services: Services, actor: Actor, sandbox: str) -> PreviewToken:
    """What opens every port of the sandbox, as the header `Corral-Token`."""
    return PreviewToken(token=await services.previews.token(actor.project, sandbox))


@routes.post("/v1/sandboxes/{sandbox}/preview-token/rotate", response_model=PreviewToken)
async def rotate(services: Services, actor: Actor, sandbox: str) -> PreviewToken:
    """Another token. The old one, and every link and cookie made with it, end at once."""
    return PreviewToken(token=await services.previews.rotate(actor, sandbox))


@routes.post("/v1/sandboxes/{sandbox}/hold", response_model=Held)
async def hold(services: Services, actor: Actor, sandbox: str, wanted: Hold) -> Held:
    """Keep it awake for a while: it is not frozen, and it counts as used."""
    return await services.previews.hold(actor, sandbox, wanted.seconds, wanted.reason)


def _number(port: str) -> int:
    if not (port.isascii() and port.isdigit() and 1 <= int(port[:6]) <= 65_535):
        raise InvalidArgument(f"port: {port[:20]!r} is none", hint="a number from 1 to 65535", details={"field": "port"})
    return int(port)
