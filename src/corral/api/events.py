"""/v1/events: what happened, as a list or as a stream that goes on."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from corral.api.route import JSON, Actor, Services, may, router
from corral.api.stream import EVENT_STREAM, EventStream, event, finishing, last_event_id
from corral.control.roles import Permission
from corral.schema.observe import Events

routes = router("events")

_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "Events; with `follow` as a stream of events `event`, whose id is `seq`", "model": Events, "content": {EVENT_STREAM: {}}}
}


class Asked(BaseModel):
    """What GET /v1/events may be asked."""

    model_config = ConfigDict(extra="forbid")

    sandbox: str | None = Field(None, max_length=63, description="only of this one (id, or name of a living one)")
    kind: str | None = Field(None, max_length=64, description="only of this kind, such as sandbox.stopped")
    after: int = Field(0, ge=0, lt=1 << 63, description="only those with a greater `seq`; `Last-Event-ID` counts more")
    limit: int = Field(1000, ge=1, le=10_000, description="without `follow`: so many at most, the oldest first; ask again after the last one's `seq`")
    follow: bool = False


@routes.get("/v1/events", response_class=Response, responses=_ANSWERS)
@may(Permission.LOOK)
async def events(request: Request, services: Services, actor: Actor, query: Annotated[Asked, Query()]) -> Response:
    """Events of the project, oldest first."""
    sandbox = query.sandbox
    if sandbox is not None and (living := services.sandboxes.ledger.find(actor.project, sandbox)) is not None:
        sandbox = living.record.id
    kinds = None if query.kind is None else (query.kind,)
    if not query.follow:
        found = await services.events.since(actor.project, after=query.after, sandbox=sandbox, kinds=kinds, limit=query.limit)
        return Response(Events(events=found).model_dump_json(), media_type=JSON)
    after = query.after if (last := last_event_id(request)) is None else last

    async def stream() -> AsyncGenerator[bytes, None]:
        async with finishing(services.events.follow(actor.project, after=after, sandbox=sandbox, kinds=kinds)) as items:
            async for item in items:
                yield event(item.model_dump_json().encode(), name="event", id=str(item.seq))

    return EventStream(stream(), services.streams)
