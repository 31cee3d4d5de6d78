"""/v1/sandboxes/{sandbox}/egress: what one sandbox may reach, and what it did reach."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field, RootModel
from starlette.requests import Request
from starlette.responses import Response

from corral.api.route import JSON, Actor, Services, may, router
from corral.api.stream import EVENT_STREAM, EventStream, event, finishing, last_event_id
from corral.control.roles import Permission
from corral.schema.egress import Egress, EgressView, Flows

routes = router("egress", 409, 410)


class Wanted(RootModel[Egress]):
    """A policy, or the name of a preset."""


class Page(BaseModel):
    """What the flow log may be asked."""

    model_config = ConfigDict(extra="forbid")

    after: int = Field(0, ge=0, lt=1 << 63, description="only those with a greater `seq`; `next` of the page before")
    limit: int = Field(1000, ge=1, le=10_000, description="without `follow`: so many at most")
    follow: bool = Field(default=False, description="go on with those that come, as a stream of events; `Last-Event-ID` counts more than `after`")


_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "Flows; with `follow` as a stream of events `flow`, whose id is `seq`", "model": Flows, "content": {EVENT_STREAM: {}}}
}


@routes.get("/v1/sandboxes/{sandbox}/egress", response_model=EgressView)
@may(Permission.LOOK)
async def get(services: Services, actor: Actor, sandbox: str) -> EgressView:
    """Its policy, the bytes so far, and for a policy that learns what it proposes."""
    return await services.policies.view(actor.project, sandbox)


@routes.put("/v1/sandboxes/{sandbox}/egress", response_model=EgressView)
async def put(services: Services, actor: Actor, sandbox: str, wanted: Wanted) -> EgressView:
    """Another policy, from now on: connections that it does not allow are cut. It is kept for later starts."""
    return await services.policies.set(actor, sandbox, wanted.root)


@routes.get("/v1/sandboxes/{sandbox}/egress/flows", response_class=Response, responses=_ANSWERS)
@may(Permission.LOOK)
async def flows(request: Request, services: Services, actor: Actor, sandbox: str, query: Annotated[Page, Query()]) -> Response:
    """What it reached and tried to reach, oldest first. The log is bounded: the oldest are dropped."""
    return await _told(request, services, actor, sandbox, query, denied=False)


@routes.get("/v1/sandboxes/{sandbox}/egress/denials", response_class=Response, responses=_ANSWERS)
@may(Permission.LOOK)
async def denials(request: Request, services: Services, actor: Actor, sandbox: str, query: Annotated[Page, Query()]) -> Response:
    """Of these only what was denied, each with its reason."""
    return await _told(request, services, actor, sandbox, query, denied=True)


async def _told(request: Request, services: Services, actor: Actor, sandbox: str, query: Page, *, denied: bool) -> Response:
    if not query.follow:
        found = await services.policies.flows(actor.project, sandbox, after=query.after, limit=query.limit, denied=denied)
        return Response(found.model_dump_json(), media_type=JSON)
    after = query.after if (last := last_event_id(request)) is None else last
    following = await services.policies.follow(actor.project, sandbox, after=after, denied=denied)

    async def stream() -> AsyncGenerator[bytes, None]:
        async with finishing(following) as flows:
            async for flow in flows:
                yield event(flow.model_dump_json().encode(), name="flow", id=str(flow.seq))

    return EventStream(stream(), services.streams)


@routes.post("/v1/sandboxes/{sandbox}/egress/learn", response_model=EgressView)
async def learn(services: Services, actor: Actor, sandbox: str) -> EgressView:
    """Let it reach the public internet (or all, where its default is that) and write down what it needs; `proposal` is then the smallest policy for it."""
    return await services.policies.learn(actor, sandbox)
