"""/v1/approvals: connections that wait for somebody's decision, since a policy says `ask`."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field

from corral.api.route import Actor, Services, may, router
from corral.control.roles import Permission
from corral.schema.egress import Approval, Approvals, Decision, KeptRules
from corral.schema.webhook import Webhook, WebhookSet

routes = router("approvals", 409, 410, 429)


class Asked(BaseModel):
    """What GET /v1/approvals may be asked."""

    model_config = ConfigDict(extra="forbid")

    sandbox: str | None = Field(None, max_length=63, description="only of this one: its id or name")


@routes.get("/v1/approvals", response_model=Approvals)
@may(Permission.LOOK)
async def listing(services: Services, actor: Actor, query: Annotated[Asked, Query()]) -> Approvals:
    """Those of the project's sandboxes that wait now."""
    id = None if query.sandbox is None else (await services.sandboxes.get(actor.project, query.sandbox)).id
    return Approvals(approvals=services.policies.approvals(actor.project, id))


@routes.post("/v1/approvals/{approval}", response_model=Approval)
async def decide(services: Services, actor: Actor, approval: str, wanted: Decision) -> Approval:
    """Let the connection go on, or fail it with the reason; once, for this sandbox, or for the project's sandboxes from now on."""
    return await services.policies.decide(actor, approval, wanted)


@routes.get("/v1/approvals/rules", response_model=KeptRules)
@may(Permission.LOOK)
async def rules(services: Services, actor: Actor) -> KeptRules:
    """What was decided for the project's sandboxes `always`."""
    return KeptRules(rules=services.policies.kept(actor.project))


@routes.put("/v1/approvals/webhook", response_model=Webhook)
async def set_webhook(services: Services, actor: Actor, wanted: WebhookSet) -> Webhook:
    """Where a signed request goes for each connection that begins to wait, and for each decision. In place of the one before; `secret` is told this once."""
    return await services.webhooks.set(actor, wanted)


@routes.get("/v1/approvals/webhook", response_model=Webhook)
@may(Permission.LOOK)
async def webhook(services: Services, actor: Actor) -> Webhook:
    """Where that is, if anywhere."""
    return services.webhooks.get(actor.project)


@routes.delete("/v1/approvals/webhook", status_code=204)
async def remove_webhook(services: Services, actor: Actor) -> None:
    """From now on nowhere."""
    await services.webhooks.remove(actor)


@routes.delete("/v1/approvals/rules/{rule}", status_code=204)
async def forget(services: Services, actor: Actor, rule: str) -> None:
    """Take such a decision back: the same question is asked again."""
    await services.policies.unkeep(actor, rule)
