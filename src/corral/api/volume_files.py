"""/v1/volumes/{volume}/files: what is in a volume, for who has no sandbox with it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import Query
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from corral.api.body import pieces
from corral.api.files import BODY, BYTES, Place, send
from corral.api.route import Actor, Services, may, router
from corral.control.roles import Permission
from corral.node.volume_door import VolumeDoor
from corral.schema import file as schema
from corral.schema.volume import Numbers, VolumeMkdir, VolumeSymlink

routes = router("volumes", 409, 507)


class Writing(Place):
    """How PUT …/files writes."""

    mode: int | None = Field(None, ge=0, le=0o7777, description="permission bits, as a decimal number; default: what it had, else 0644")
    user: Numbers | None = None
    parents: bool = Field(default=True, description="make the directories above")
    exclusive: bool = Field(default=False, description="only if there is nothing yet")


@routes.get("/v1/volumes/{volume}/files", response_class=Response, responses=BYTES)
@may(Permission.LOOK)
async def read(request: Request, services: Services, actor: Actor, volume: str, query: Annotated[Place, Query()]) -> Response:
    """A file's bytes. `Range` asks for a part. No link is followed, here and in all that follows."""
    return await send(request, services, _files(services, actor, volume), query.at)


@routes.put("/v1/volumes/{volume}/files", response_model=schema.Entry, openapi_extra=BODY)
async def write(request: Request, services: Services, actor: Actor, volume: str, query: Annotated[Writing, Query()]) -> schema.Entry:
    """Write a file. It appears whole or not at all."""
    files = _files(services, actor, volume)

    async def body() -> AsyncGenerator[bytes, None]:
        async for piece in pieces(request):
            services.meter.uploaded.inc(len(piece))
            yield piece

    return await files.write(query.at, body(), mode=query.mode, user=query.user, parents=query.parents, exclusive=query.exclusive)


@routes.post("/v1/volumes/{volume}/files/stat", response_model=schema.Entry)
@may(Permission.LOOK)
async def stat(services: Services, actor: Actor, volume: str, wanted: schema.At) -> schema.Entry:
    """What is there; of a symbolic link the link itself."""
    return await _files(services, actor, volume).stat(wanted)


@routes.post("/v1/volumes/{volume}/files/exists", response_model=schema.Exists)
@may(Permission.LOOK)
async def exists(services: Services, actor: Actor, volume: str, wanted: schema.At) -> schema.Exists:
    """Whether there is something, a symbolic link too."""
    return schema.Exists(exists=await _files(services, actor, volume).exists(wanted))


@routes.post("/v1/volumes/{volume}/files/list", response_model=schema.Entries)
@may(Permission.LOOK)
async def listing(services: Services, actor: Actor, volume: str, wanted: schema.ListFiles) -> schema.Entries:
    """The entries of a directory, by path; `more` when there are further ones, after the last."""
    return await _files(services, actor, volume).list(wanted)


@routes.post("/v1/volumes/{volume}/files/mkdir", status_code=204)
async def mkdir(services: Services, actor: Actor, volume: str, wanted: VolumeMkdir) -> None:
    """Make a directory; with `parents` those above too, and it is no error if it is there."""
    await _files(services, actor, volume).mkdir(wanted)


@routes.post("/v1/volumes/{volume}/files/remove", status_code=204)
async def remove(services: Services, actor: Actor, volume: str, wanted: schema.Remove) -> None:
    """Remove a file, an empty directory, or with `recursive` a whole one."""
    await _files(services, actor, volume).remove(wanted)


@routes.post("/v1/volumes/{volume}/files/symlink", status_code=204)
async def symlink(services: Services, actor: Actor, volume: str, wanted: VolumeSymlink) -> None:
    """Make a symbolic link."""
    await _files(services, actor, volume).symlink(wanted)


def _files(services: Services, actor: Actor, volume: str) -> VolumeDoor:
    return services.node.volumes.files(services.volumes.get(actor.project, volume).id)
