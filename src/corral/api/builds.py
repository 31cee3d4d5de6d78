"""/v1/images/builds: building images, and what that needs from the client."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from corral.api.body import pieces
from corral.api.route import JSON, Actor, Services, may, router
from corral.api.stream import EVENT_STREAM, EventStream, event, finishing, last_event_id
from corral.control.roles import Permission
from corral.schema.image import Build, BuildCreate
from corral.schema.model import Answer

routes = router("images", 409, 429, 507)

_BODY: dict[str, Any] = {"requestBody": {"required": True, "content": {"application/x-tar": {"schema": {"type": "string", "format": "binary"}}}}}
_LOGS: dict[int | str, dict[str, Any]] = {
    200: {"description": "Events `log` (BuildLog), whose id resumes; at the end `end` (Build)", "content": {EVENT_STREAM: {}}}
}


class Asked(BaseModel):
    """What GET …/logs may be asked."""

    model_config = ConfigDict(extra="forbid")

    after: int = Field(0, ge=0, lt=1 << 63, description="only what has a greater `seq`; `Last-Event-ID` counts more")


class Uploaded(Answer):
    """What was received."""

    size: int


@routes.post("/v1/images/builds", status_code=202, response_model=Build)
async def create(services: Services, actor: Actor, wanted: BuildCreate) -> Response:
    """Build an image, or find it: the answer says `ready` at once when every step's result is known. The same build under way is joined. Safe to repeat."""
    progress = await services.builds.start(actor, wanted)
    return Response(progress.show().model_dump_json(), 202, None, JSON)


@routes.get("/v1/images/builds/{build}", response_model=Build)
@may(Permission.LOOK)
async def get(services: Services, actor: Actor, build: str) -> Build:
    """How far it is."""
    return services.builds.get(actor.project, build).show()


@routes.get("/v1/images/builds/{build}/logs", response_class=Response, responses=_LOGS)
@may(Permission.LOOK)
async def logs(request: Request, services: Services, actor: Actor, build: str, query: Annotated[Asked, Query()]) -> Response:
    """What it says and its steps print, from the beginning until it has ended."""
    progress = services.builds.get(actor.project, build)
    after = query.after if (last := last_event_id(request)) is None else last

    async def stream() -> AsyncGenerator[bytes, None]:
        async with finishing(progress.follow(after)) as lines:
            async for line in lines:
                yield event(line.model_dump_json().encode(), name="log", id=str(line.seq))
        yield event(progress.show().model_dump_json().encode(), name="end")

    return EventStream(stream(), services.streams)


@routes.delete("/v1/images/builds/{build}", response_model=Build)
async def cancel(services: Services, actor: Actor, build: str) -> Build:
    """End it. What its steps have made by now is kept for the next."""
    return (await services.builds.cancel(actor.project, build)).show()


@routes.put("/v1/images/uploads/{digest}", response_model=Uploaded, openapi_extra=_BODY)
async def upload(request: Request, services: Services, actor: Actor, digest: str) -> Uploaded:
    """A file that builds take, named by its SHA-256. It is there whole or not at all."""
    return Uploaded(size=await services.node.library.uploads.add(actor.project, digest, pieces(request)))
