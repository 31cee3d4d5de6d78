"""/v1/webhooks: where signed requests tell what happens to the project's sandboxes."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from corral.api.idempotent import idempotent
from corral.api.route import JSON, Actor, Services, may, router
from corral.control.idempotency import Answer, Claim
from corral.control.roles import Permission
from corral.schema.webhook import EventWebhook, EventWebhookCreate, EventWebhooks, EventWebhookUpdate

routes = router("webhooks", 409, 429)


@routes.post("/v1/webhooks", status_code=201, response_model=EventWebhook)
async def create(request: Request, services: Services, actor: Actor, wanted: EventWebhookCreate) -> Response:
    """Have a signed request sent to a URL for each event of these kinds from now on, in their order."""

    async def make(_claim: Claim | None) -> Answer:
        return Answer(201, (await services.event_webhooks.create(actor, wanted)).model_dump_json().encode())

    # The request or the answer holds the secret.
    answer = await idempotent(request, services, actor, make, secret=True)
    return Response(answer.body, answer.status, media_type=JSON)


@routes.get("/v1/webhooks", response_model=EventWebhooks)
@may(Permission.LOOK)
async def listing(services: Services, actor: Actor) -> EventWebhooks:
    """The project's, the oldest first."""
    return EventWebhooks(webhooks=[hook.show() for hook in services.event_webhooks.all(actor.project)])


@routes.get("/v1/webhooks/{webhook}", response_model=EventWebhook)
@may(Permission.LOOK)
async def get(services: Services, actor: Actor, webhook: str) -> EventWebhook:
    """One, and how far it was told."""
    return services.event_webhooks.get(actor.project, webhook).show()


@routes.patch("/v1/webhooks/{webhook}", response_model=EventWebhook)
async def update(services: Services, actor: Actor, webhook: str, wanted: EventWebhookUpdate) -> EventWebhook:
    """Change what is given."""
    return await services.event_webhooks.update(actor, webhook, wanted)


@routes.delete("/v1/webhooks/{webhook}", status_code=204)
async def delete(services: Services, actor: Actor, webhook: str) -> None:
    """Nothing is told there any more."""
    await services.event_webhooks.remove(actor, webhook)
