"""/templates of E2B: names for images, and their tags. Snapshots are deleted here, too."""

from __future__ import annotations

import uuid
from typing import Any

from starlette.responses import Response

from corral.control.roles import Permission
from corral.errors import NotFound
from corral.facades.e2b.body import Body
from corral.facades.e2b.refusal import Refused
from corral.facades.e2b.rest.call import Call, told
from corral.facades.e2b.rest.recipe import names_of, native_tag
from corral.facades.e2b.rest.sandboxes import image
from corral.schema.image import Template

_IMAGES = uuid.UUID("6f7c3a1e-5f0e-4a53-9d7c-0d6a0f0c8c11")


class Assign(Body):
    """POST /templates/tags."""

    target: str
    tags: list[str]


class Remove(Body):
    """DELETE /templates/tags."""

    name: str
    tags: list[str]


async def delete(call: Call) -> Response:
    """A template or a snapshot; sandboxes made from it go on."""
    call.actor.require(Permission.USE)
    ref = image(call.part("template"))
    try:
        await call.services.snapshots.delete(call.actor, ref, cascade=True)
    except NotFound:
        try:
            await call.services.templates.delete(call.actor, ref)
        except NotFound:
            raise Refused(404, f"template '{ref[:200]}' not found") from None
    return Response(status_code=204)


async def alias(call: Call) -> Response:
    """Whether there is one of this name."""
    call.actor.require(Permission.LOOK)
    name = image(call.part("alias"))
    if not _find(call, name.partition(":")[0]).tags:
        raise _missing(name)
    return told({"templateID": name, "public": False})


async def listing(call: Call) -> Response:
    call.actor.require(Permission.LOOK)
    return told([_shown(template) for template in call.services.templates.of(call.actor.project) if template.tags])


async def tags(call: Call) -> Response:
    call.actor.require(Permission.LOOK)
    template = _find(call, image(call.part("template")))
    created = template.created_at.isoformat() if template.created_at is not None else "1970-01-01T00:00:00Z"
    return told([{"tag": _shown_tag(tag), "buildID": _build(id), "createdAt": created} for tag, id in template.tags.items()])


async def assign(call: Call) -> Response:
    """Let further tags mean what one means."""
    call.actor.require(Permission.USE)
    wanted = await call.body(Assign)
    name, (tag, *_) = names_of(wanted.target, [])
    given = {one.rpartition(":")[2]: _tag(one) for one in wanted.tags}
    found = _find(call, name).tags.get(tag)
    if found is None:
        raise _missing(wanted.target)
    for one in given.values():
        await call.services.templates.set(call.actor, name, one, found)
    return told({"tags": list(given), "buildID": _build(found)}, 201)


async def remove(call: Call) -> Response:
    call.actor.require(Permission.USE)
    wanted = await call.body(Remove)
    for tag in wanted.tags:
        try:
            await call.services.templates.delete(call.actor, wanted.name, _tag(tag))
        except NotFound:
            raise _missing(f"{wanted.name}:{tag}") from None
    return Response(status_code=204)


def _find(call: Call, name: str) -> Template:
    try:
        return call.services.templates.get(call.actor.project, name)
    except NotFound:
        raise _missing(name) from None


def _missing(name: str) -> Refused:
    return Refused(404, f"template '{name[:200]}' not found")


def _tag(tag: str) -> str:
    plain = tag.rpartition(":")[2] if not tag.startswith(":") else ""
    if not plain:
        raise Refused(400, f"tags: {tag[:80]!r} is no tag")
    return native_tag(plain)


def _shown_tag(tag: str) -> str:
    return "default" if tag == "latest" else tag


def _build(image_id: str) -> str:
    """E2B's clients want an id of a build to look like one."""
    return str(uuid.uuid5(_IMAGES, image_id))


def _shown(template: Template) -> dict[str, Any]:
    return {
        "templateID": template.name,
        "buildID": _build(next(iter(template.tags.values()), "")),
        "public": template.project is None,
        "aliases": [template.name],
        "names": [template.name],
        "tags": [_shown_tag(tag) for tag in template.tags],
    }
