"""/v1/sandboxes/{sandbox}/egress: what one sandbox may reach, and what it did reach."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field, RootModel

from corral.api.route import Actor, Services, may, router
from corral.control.roles import Permission
from corral.schema.egress import Egress, EgressView, Flows

routes = router("egress", 409, 410)


class Wanted(RootModel[Egress]):
    """A policy, or the name of a preset."""


class Page(BaseModel):
    """What the flow log may be asked."""

    model_config = ConfigDict(extra="forbid")

    after: int = Field(0, ge=0, lt=1 << 63, description="only those with a greater `seq`; `next` of the page before")
    limit: int = Field(1000, ge=1, le=10_000)


@routes.get("/v1/sandboxes/{sandbox}/egress", response_model=EgressView)
@may(Permission.LOOK)
async def get(services: Services, actor: Actor, sandbox: str) -> EgressView:
    """Its policy, the bytes so far, and for a policy that learns what it proposes."""
    return await services.policies.view(actor.project, sandbox)


@routes.put("/v1/sandboxes/{sandbox}/egress", response_model=EgressView)
async def put(services: Services, actor: Actor, sandbox: str, wanted: Wanted) -> EgressView:
    """Another policy, from now on: connections that it does not allow are cut. It is kept for later starts."""
    return await services.policies.set(actor, sandbox, wanted.root)


@routes.get("/v1/sandboxes/{sandbox}/egress/flows", response_model=Flows)
@may(Permission.LOOK)
async def flows(services: Services, actor: Actor, sandbox: str, query: Annotated[Page, Query()]) -> Flows:
    """What it reached and tried to reach, oldest first. The log is bounded: the oldest are dropped."""
    return await services.policies.flows(actor.project, sandbox, after=query.after, limit=query.limit, denied=False)


@routes.get("/v1/sandboxes/{sandbox}/egress/denials", response_model=Flows)
@may(Permission.LOOK)
async def denials(services: Services, actor: Actor, sandbox: str, query: Annotated[Page, Query()]) -> Flows:
    """Of these only what was denied, each with its reason."""
    return await services.policies.flows(actor.project, sandbox, after=query.after, limit=query.limit, denied=True)


@routes.post("/v1/sandboxes/{sandbox}/egress/learn", response_model=EgressView)
async def learn(services: Services, actor: Actor, sandbox: str) -> EgressView:
    """Let it reach the public internet (or all, where its default is that) and write down what it needs; `proposal` is then the smallest policy for it."""
    return await services.policies.learn(actor, sandbox)
