"""/v1/sandboxes/{sandbox}/tree: whole directories as a tar stream, out and in."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import Query
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from corral.api.body import pieces
from corral.api.files import Place
from corral.api.route import JSON, Actor, Services, may, router
from corral.api.stream import ByteStream
from corral.control.roles import Permission
from corral.schema.model import Answer

routes = router("files", 409, 410, 507)

TAR = "application/x-tar"
_BODY: dict[str, Any] = {"requestBody": {"required": True, "content": {TAR: {"schema": {"type": "string", "format": "binary"}}}}}
_TREE: dict[int | str, dict[str, Any]] = {200: {"description": "A POSIX tar stream, names relative to the path", "content": {TAR: {}}}}


class Unpacking(Place):
    """How PUT …/tree unpacks."""

    user: str | None = Field(None, max_length=256, description="owner of everything; default: the sandbox's user")
    parents: bool = Field(default=True, description="make the directories above")


class Unpacked(Answer):
    """What was written."""

    files: int
    bytes: int


@routes.get("/v1/sandboxes/{sandbox}/tree", response_class=Response, responses=_TREE)
@may(Permission.LOOK)
async def download(services: Services, actor: Actor, sandbox: str, query: Annotated[Place, Query()]) -> Response:
    """A directory with all that is in it."""
    files = services.node.files((await services.sandboxes.use(actor.project, sandbox, wake=True)).id)
    stream = await files.tar_out(query.at)

    async def body() -> AsyncGenerator[bytes, None]:
        async for part in stream:
            services.meter.downloaded.inc(len(part))
            yield part

    return ByteStream(body(), services.streams, media_type=TAR, owns=stream)


@routes.put("/v1/sandboxes/{sandbox}/tree", response_model=Unpacked, openapi_extra=_BODY)
async def upload(request: Request, services: Services, actor: Actor, sandbox: str, query: Annotated[Unpacking, Query()]) -> Response:
    """Unpack a tar stream below the path; nothing leaves it, by name or by link."""
    files = services.node.files((await services.sandboxes.use(actor.project, sandbox, wake=True)).id)

    async def body() -> AsyncGenerator[bytes, None]:
        async for piece in pieces(request):
            services.meter.uploaded.inc(len(piece))
            yield piece

    done = await files.tar_in(query.at, body(), user=query.user, parents=query.parents)
    return Response(Unpacked(files=done.files, bytes=done.bytes).model_dump_json(), media_type=JSON)
