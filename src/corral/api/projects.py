"""/v1/projects: units of ownership and quota. For admins; others may look at their own."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from corral.api.idempotent import idempotent
from corral.api.route import JSON, Actor, Services, may, router
from corral.control.idempotency import Answer, Claim
from corral.control.roles import Permission, acting_in
from corral.errors import Conflict
from corral.schema.account import Project, ProjectCreate, Projects

routes = router("projects", 409)


@routes.post("/v1/projects", status_code=201, response_model=Project)
@may(Permission.ADMINISTER)
async def create(request: Request, services: Services, actor: Actor, wanted: ProjectCreate) -> Response:
    """A new project. A limit that is left out does not exist."""

    async def make(_claim: Claim | None) -> Answer:
        return Answer(201, (await services.accounts.add_project(wanted)).model_dump_json().encode())

    answer = await idempotent(request, services, actor, make)
    return Response(answer.body, answer.status, media_type=JSON)


@routes.get("/v1/projects", response_model=Projects)
@may(Permission.ADMINISTER)
async def listing(services: Services, actor: Actor) -> Projects:  # noqa: ARG001 - an admin's key is needed
    """All projects."""
    return Projects(projects=services.accounts.projects())


@routes.get("/v1/projects/{name}", response_model=Project)
@may(Permission.LOOK)
async def get(services: Services, actor: Actor, name: str) -> Project:
    """One project."""
    return services.accounts.project(acting_in(actor, name).project)


@routes.delete("/v1/projects/{name}", status_code=204)
@may(Permission.ADMINISTER)
async def delete(services: Services, actor: Actor, name: str) -> None:  # noqa: ARG001 - an admin's key is needed
    """Remove a project without living sandboxes; its keys are revoked, its secrets forgotten."""
    services.accounts.project(name)
    if (count := services.sandboxes.living_in(name)) > 0:
        raise Conflict(f"the project {name} has {count} living sandboxes", hint="delete them first", details={"sandboxes": count})
    await services.accounts.remove_project(name)
    services.policies.project_removed(name)
    await services.webhooks.forget(name)
    await services.event_webhooks.forget(name)
