"""/v1/images: what sandboxes can be made from."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from corral.api.route import Actor, Services, may, router
from corral.api.stream import ByteStream, while_asked
from corral.control.ports import StoredImage
from corral.control.roles import Permission
from corral.errors import ImageNotFound
from corral.schema.image import ImageInfo, ImageInfos, Prune, Pruned, Usage

routes = router("images", 409, 507)

_PIECE = 1 << 20
_ARCHIVE: dict[int | str, dict[str, Any]] = {
    200: {"description": "The archive", "content": {"application/x-tar": {"schema": {"type": "string", "format": "binary"}}}}
}


@routes.get("/v1/images", response_model=ImageInfos)
@may(Permission.LOOK)
async def listing(services: Services, actor: Actor) -> ImageInfos:
    """Images of the project, newest first, and those that ship with Corral."""
    mine = [services.images.show(record) for record in services.images.of(actor.project)]
    return ImageInfos(images=[*mine, *(_shipped(image) for image in services.node.images() if not services.node.library.is_imported(image.spec.id))])


@routes.get("/v1/images/usage", response_model=Usage)
@may(Permission.LOOK)
async def usage(services: Services, actor: Actor) -> Usage:
    """What images, results of steps and uploads of the project take. Files that several share are counted for each."""
    uploads = services.node.library.uploads.usage(actor.project)
    return services.images.usage(actor.project, [size for _, size, _ in uploads])


@routes.post("/v1/images/prune", response_model=Pruned)
async def prune(services: Services, actor: Actor, wanted: Prune) -> Pruned:
    """Forget results of steps and uploads that no build has used lately. Sandboxes and images that stand on them go on."""
    done = await services.images.prune(actor.project, wanted)
    uploads = services.node.library.uploads.prune(actor.project, older_than=wanted.older_than, keep_size=wanted.keep_size, now=services.clock())
    return done.model_copy(update={"uploads": len(uploads), "size": done.size + sum(uploads)})


@routes.get("/v1/images/{image}/archive", response_class=Response, responses=_ARCHIVE)
async def archive(request: Request, services: Services, actor: Actor, image: str) -> Response:
    """An image, snapshot or template's image as an OCI archive, which `docker load`, skopeo and podman take. It is whole before the answer begins; hanging up ends it."""
    stack = AsyncExitStack()
    try:
        path = await while_asked(request, stack.enter_async_context(services.exports.archive(actor.project, image)))
        file = stack.enter_context(path.open("rb"))
        headers = {"Content-Length": str(path.stat().st_size)}

        async def body() -> AsyncGenerator[bytes, None]:
            while piece := await asyncio.to_thread(file.read, _PIECE):
                yield piece

        return ByteStream(body(), services.streams, headers=headers, media_type="application/x-tar", owns=stack)
    except BaseException:
        await stack.aclose()
        raise


@routes.get("/v1/images/{image}", response_model=ImageInfo)
@may(Permission.LOOK)
async def get(services: Services, actor: Actor, image: str) -> ImageInfo:
    """One image, by its id or a template's `name:tag`."""
    if (record := services.templates.image(actor.project, image)) is not None:
        return services.images.show(record)
    for shipped in services.node.images():
        if image in (shipped.spec.id, shipped.spec.name) and not services.node.library.is_imported(shipped.spec.id):
            return _shipped(shipped)
    raise ImageNotFound(f"there is no image {image[:80]!r}", hint="`corral image ls` lists those there are", details={"image": image[:80]})


@routes.delete("/v1/images/{image}", response_model=ImageInfo)
async def delete(services: Services, actor: Actor, image: str) -> ImageInfo:
    """Delete an image of the project. Refused while a template names it or a sandbox stands on it."""
    shown = services.images.show(services.images.get(actor.project, image))
    await services.images.delete(actor, image)
    return shown


def _shipped(image: StoredImage) -> ImageInfo:
    spec = image.spec
    return ImageInfo(
        id=spec.id,
        name=spec.name,
        created_at=image.created,
        size=image.size,
        user=spec.user,
        workdir=spec.workdir,
        env=dict(spec.env),
        command=None if spec.command is None else list(spec.command),
    )
