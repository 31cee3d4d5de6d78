"""/v1/templates: names for images, by tags."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from corral.api.route import Actor, Services, may, router
from corral.control.roles import Permission
from corral.schema.image import Tag, Template, TemplateName, Templates, TemplateSet

routes = router("templates", 409)

_NAME: TypeAdapter[str] = TypeAdapter(TemplateName)


class Deletion(BaseModel):
    """How DELETE /v1/templates/{template} may be asked."""

    model_config = ConfigDict(extra="forbid")

    tag: Tag | None = Field(None, description="only this tag; null: all of them")


@routes.get("/v1/templates", response_model=Templates)
@may(Permission.LOOK)
async def listing(services: Services, actor: Actor) -> Templates:
    """Those of the project, and those that ship with Corral, by name."""
    return Templates(templates=services.templates.of(actor.project))


@routes.get("/v1/templates/{template}", response_model=Template)
@may(Permission.LOOK)
async def get(services: Services, actor: Actor, template: str) -> Template:
    """One template: its tags, and the sandboxes that use it."""
    return services.templates.get(actor.project, template)


@routes.put("/v1/templates/{template}", response_model=Template)
async def put(services: Services, actor: Actor, template: str, wanted: TemplateSet) -> Template:
    """Let a name and tag mean an image; made if it is new, moved if it is there."""
    return await services.templates.set(actor, _NAME.validate_python(template), wanted.tag, wanted.image)


@routes.delete("/v1/templates/{template}", status_code=204)
async def delete(services: Services, actor: Actor, template: str, query: Annotated[Deletion, Query()]) -> None:
    """Forget a template or one of its tags. Images and sandboxes stay."""
    await services.templates.delete(actor, template, query.tag)
