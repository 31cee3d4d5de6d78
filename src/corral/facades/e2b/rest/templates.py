"""/templates of E2B: names for images, and their tags. Snapshots are deleted here, too."""

from __future__ import annotations

import uuid
from typing import Any

from starlette.responses import Response

from corral.control.roles import Permission
from corral.errors import NotFound
from corral.facades.e2b import envd
from corral.facades.e2b.body import Body
from corral.facades.e2b.refusal import Refused
from corral.facades.e2b.rest.call import Call, told
from corral.facades.e2b.rest.recipe import named, names_of, native_tag
from corral.facades.e2b.rest.sandboxes import image, size
from corral.schema.image import Template

_IMAGES = uuid.UUID("6f7c3a1e-5f0e-4a53-9d7c-0d6a0f0c8c11")
_EPOCH = "1970-01-01T00:00:00Z"


class Assign(Body):
    """POST /templates/tags."""

    target: str
    tags: list[str]


class Remove(Body):
    """DELETE /templates/tags."""

    name: str
    tags: list[str]


class Update(Body):
    """PATCH /templates/{template}."""

    public: bool | None = None


async def delete(call: Call) -> Response:
    """A template or a snapshot; what was made from it, sandboxes and snapshots of these, goes on."""
    call.actor.require(Permission.USE)
    ref = image(call.part("template"), call.actor.project)
    try:
        await call.services.snapshots.withdraw(call.services.snapshots.get(call.actor.project, ref), call.actor.key)
    except NotFound:
        try:
            await call.services.templates.delete(call.actor, ref.partition(":")[0])
        except NotFound:
            raise _missing(ref) from None
    return Response(status_code=204)


async def alias(call: Call) -> Response:
    """Whether there is one of this name; with a tag, whether that is there too."""
    call.actor.require(Permission.LOOK)
    ref = named(call.part("alias"), call.actor.project)
    name, tags = names_of(ref, [], call.actor.project)
    template = _find(call, _own(name))
    if not template.tags or (":" in ref and tags[0] not in template.tags):
        raise Refused(404, f"tag '{_shown_tag(tags[0])}' does not exist for template '{name}'")
    return told({"templateID": template.name, "public": template.project is None})


async def listing(call: Call) -> Response:
    """Version 1: all at once."""
    call.actor.require(Permission.LOOK)
    return told([_shown(call, template) for template in _listed(call)])


async def listing_v2(call: Call) -> Response:
    """By name, in pages."""
    call.actor.require(Permission.LOOK)
    found, headers = call.page(_listed(call), lambda template: template.name)
    return told([_shown(call, template) for template in found], headers=headers)


def _listed(call: Call) -> list[Template]:
    return [template for template in call.services.templates.of(call.actor.project) if template.tags]


async def get(call: Call) -> Response:
    """One, with what its tags mean as its builds."""
    call.actor.require(Permission.LOOK)
    template = _find(call, _own(names_of(call.part("template"), [], call.actor.project)[0]))
    shown = _shown(call, template)
    also = {name: shown[name] for name in ("cpuCount", "memoryMB", "diskSizeMB", "envdVersion", "createdAt", "updatedAt")}
    builds, headers = call.page({build_id(id) for id in template.tags.values()}, str)
    kept = ("templateID", "public", "aliases", "names", "createdAt", "updatedAt", "lastSpawnedAt", "spawnCount")
    ready = [{"buildID": id, "status": "ready", "finishedAt": shown["updatedAt"], **also} for id in builds]
    return told({**{name: shown[name] for name in kept}, "builds": ready}, headers=headers)


async def update(call: Call) -> Response:
    """A template is its project's alone, and stays it."""
    call.actor.require(Permission.USE)
    template = _find(call, _own(names_of(call.part("template"), [], call.actor.project)[0]))
    if (await call.body(Update)).public:
        raise Refused(400, "public: templates are their project's alone here")
    return told({"names": [template.name]})


async def tags(call: Call) -> Response:
    call.actor.require(Permission.LOOK)
    template = _find(call, _own(names_of(call.part("template"), [], call.actor.project)[0]))
    created = _created(template)
    return told([{"tag": _shown_tag(tag), "buildID": build_id(id), "createdAt": created} for tag, id in template.tags.items()])


async def assign(call: Call) -> Response:
    """Let further tags mean what one means."""
    call.actor.require(Permission.USE)
    wanted = await call.body(Assign)
    if not wanted.tags:
        raise Refused(400, "At least one tag is required")
    name, (tag, *_) = names_of(wanted.target, [], call.actor.project)
    given = {one.rpartition(":")[2].strip().lower(): _tag(one) for one in wanted.tags}  # told by the words that were used
    found = _find(call, _own(name)).tags.get(tag)
    if found is None:
        raise Refused(404, f"Template '{wanted.target[:200]}' with tag '{_shown_tag(tag)}' not found")
    for one in given.values():
        await call.services.templates.set(call.actor, name, one, found)
    return told({"tags": list(given), "buildID": build_id(found)}, 201)


async def remove(call: Call) -> Response:
    call.actor.require(Permission.USE)
    wanted = await call.body(Remove)
    if not wanted.tags:
        raise Refused(400, "At least one tag is required")
    if ":" in wanted.name:
        raise Refused(400, "Template name should not contain a tag, use the 'tags' field instead")
    name, _ = names_of(wanted.name, [], call.actor.project)
    gone = [_tag(tag) for tag in wanted.tags]
    if native_tag("default") in gone:
        raise Refused(400, "Cannot delete the 'default' tag")
    _find(call, name)
    for tag in gone:
        try:
            await call.services.templates.delete(call.actor, name, tag)
        except NotFound:
            raise _missing(f"{name}:{tag}") from None
    return Response(status_code=204)


def build_id(image_id: str) -> str:
    """E2B's clients want an id of a build to look like one."""
    return str(uuid.uuid5(_IMAGES, image_id))


def _find(call: Call, name: str) -> Template:
    try:
        return call.services.templates.get(call.actor.project, name)
    except NotFound:
        raise _missing(name) from None


def _own(name: str) -> str:
    """E2B's name of a template that ships, as it is called here."""
    return image(name, "")


def _missing(name: str) -> Refused:
    return Refused(404, f"template '{name[:200]}' not found")


def _tag(tag: str) -> str:
    plain = tag.rpartition(":")[2] if not tag.startswith(":") else ""
    if not plain:
        raise Refused(400, f"Invalid tag: {tag[:80]!r} is none")
    return native_tag(plain)


def _shown_tag(tag: str) -> str:
    return "default" if tag == "latest" else tag


def _created(template: Template) -> str:
    return template.created_at.isoformat().replace("+00:00", "Z") if template.created_at is not None else _EPOCH


def _shown(call: Call, template: Template) -> dict[str, Any]:
    """A build that has failed makes no template here, so each is ready. How often one was used is not counted."""
    of = size(call, template.name)
    return {
        "templateID": template.name,
        "buildID": build_id(next(iter(template.tags.values()), "")),
        "buildStatus": "ready",
        "buildCount": len(set(template.tags.values())),
        "public": template.project is None,
        "aliases": [template.name],
        "names": [template.name],
        "tags": [_shown_tag(tag) for tag in template.tags],
        "cpuCount": max(1, round(of["cpu"])),
        "memoryMB": int(of["memory"]),
        "diskSizeMB": int(of["disk"]),
        "envdVersion": envd.VERSION,
        "createdAt": _created(template),
        "updatedAt": _created(template),
        "createdBy": None,
        "lastSpawnedAt": None,
        "spawnCount": 0,
    }
