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
    """Remove a project without living sandboxes, snapshots and volumes; its keys are revoked, its builds end, and its secrets, templates, images, uploads and events are forgotten."""
    services.accounts.project(name)
    snapshots = services.snapshots.page(name, sandbox=None, before=None, limit=1 << 20)
    has = {"sandboxes": services.sandboxes.living_in(name), "snapshots": len(snapshots), "volumes": len(services.volumes.of(name))}
    if any(has.values()):
        told = ", ".join(f"{count} {'living ' if what == 'sandboxes' else ''}{what}" for what, count in has.items() if count)
        raise Conflict(f"the project {name} has {told}", hint="delete them first", details=has)
    await services.accounts.remove_project(name)
    # They would give a later project of the name what they make.
    await services.builds.project_removed(name)
    services.policies.project_removed(name)
    await services.snapshots.project_removed(name)
    await services.templates.project_removed(name)
    await services.images.project_removed(name)
    services.node.library.uploads.prune(name, older_than=None, keep_size=None, now=services.clock())
    await services.webhooks.forget(name)
    await services.event_webhooks.forget(name)
    services.replays.project_removed(name)
    services.events.project_removed(name)
