"""/v1/sandboxes/{sandbox}/files: bytes of files as they are, and everything else about files as JSON."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from corral.api.body import pieces
from corral.api.ranges import Range, parse_range, unsatisfiable
from corral.api.route import Actor, Services, may, router
from corral.api.stream import EVENT_STREAM, ByteStream, EventStream, event, last_event_id
from corral.control.ports import Files, Readable
from corral.control.roles import Permission
from corral.schema import file as schema

routes = router("files", 409, 410, 507)

BINARY = "application/octet-stream"
BODY: dict[str, Any] = {"requestBody": {"required": True, "content": {BINARY: {"schema": {"type": "string", "format": "binary"}}}}}
BYTES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The file", "content": {BINARY: {}}},
    206: {"description": "The part that `Range` asks for", "content": {BINARY: {}}},
    416: {"description": "`Range` begins behind the end of the file; `Content-Range` tells its size"},
}
_EVENTS: dict[int | str, dict[str, Any]] = {200: {"description": "Events `event` (WatchEvent); the id resumes", "content": {EVENT_STREAM: {}}}}


class Place(BaseModel):
    """One path: absolute, or relative to the sandbox's workdir; `path_b64` for names that are not UTF-8."""

    model_config = ConfigDict(extra="forbid")

    path: schema.Path | None = None
    path_b64: str | None = Field(None, max_length=5464)

    @property
    def at(self) -> schema.At:
        return schema.At(path=self.path, path_b64=self.path_b64)


class Writing(Place):
    """How PUT …/files writes."""

    mode: int | None = Field(None, ge=0, le=0o7777, description="permission bits, as a decimal number; default: what it had, else 0644")
    user: str | None = Field(None, max_length=256, description="owner of a new file; default: the sandbox's user")
    parents: bool = Field(default=True, description="make the directories above")
    append: bool = Field(default=False, description="add to the end of what is there")
    exclusive: bool = Field(default=False, description="only if there is nothing yet")


class Watched(Place):
    """What GET …/files/watch looks at. `Last-Event-ID` resumes."""

    recursive: bool = False


@routes.get("/v1/sandboxes/{sandbox}/files", response_class=Response, responses=BYTES)
@may(Permission.LOOK)
async def read(request: Request, services: Services, actor: Actor, sandbox: str, query: Annotated[Place, Query()]) -> Response:
    """A file's bytes. `Range` asks for a part."""
    return await send(request, services, await _files(services, actor, sandbox), query.at)


async def send(request: Request, services: Services, files: Readable, at: schema.At) -> Response:
    """The answer to who asks for a file."""
    wanted = parse_range(request.headers.get("range"))
    if wanted is not None and wanted.last is not None and wanted.first is None:
        # Of the last bytes the beginning is known only with the size.
        size = await files.size(at)
        wanted = Range(max(0, size - wanted.last), None)
    offset = 0 if wanted is None or wanted.first is None else wanted.first
    length = None if wanted is None or wanted.last is None else wanted.last - offset + 1
    entry, download = await files.read(at, offset=offset, length=length)
    size = entry.size
    if wanted is not None and size and offset >= size:
        await download.aclose()
        return unsatisfiable(size)
    headers = {"Accept-Ranges": "bytes", "Last-Modified": f"{entry.modified_at:%a, %d %b %Y %H:%M:%S} GMT"}
    # Files of /proc and the like have no size; what they give is known when they have given it.
    left = None if not size else size - offset if length is None else min(length, size - offset)
    if left is not None:
        headers["Content-Length"] = str(left)
        if wanted is not None:
            headers["Content-Range"] = f"bytes {offset}-{offset + left - 1}/{size}"
    status = 206 if "Content-Range" in headers else 200

    async def body() -> AsyncGenerator[bytes, None]:
        rest = left
        async for part in download:
            # A file that grows while it is read is given as it was at first.
            piece = part if rest is None or len(part) <= rest else part[:rest]
            services.meter.downloaded.inc(len(piece))
            if piece:
                yield piece
            if rest is not None:
                rest -= len(piece)
                if rest == 0:
                    return

    return ByteStream(body(), services.streams, status=status, headers=headers, media_type=BINARY, owns=download)


@routes.put("/v1/sandboxes/{sandbox}/files", response_model=schema.Entry, openapi_extra=BODY)
async def write(request: Request, services: Services, actor: Actor, sandbox: str, query: Annotated[Writing, Query()]) -> schema.Entry:
    """Write a file. It appears whole or not at all: a body that is cut off leaves nothing."""
    files = await _files(services, actor, sandbox)

    async def body() -> AsyncGenerator[bytes, None]:
        async for piece in pieces(request):
            services.meter.uploaded.inc(len(piece))
            yield piece

    return await files.write(query.at, body(), mode=query.mode, user=query.user, parents=query.parents, append=query.append, exclusive=query.exclusive)


@routes.post("/v1/sandboxes/{sandbox}/files/stat", response_model=schema.Entry)
@may(Permission.LOOK)
async def stat(services: Services, actor: Actor, sandbox: str, wanted: schema.At) -> schema.Entry:
    """What is there; of a symbolic link the link itself."""
    return await (await _files(services, actor, sandbox)).stat(wanted)


@routes.post("/v1/sandboxes/{sandbox}/files/exists", response_model=schema.Exists)
@may(Permission.LOOK)
async def exists(services: Services, actor: Actor, sandbox: str, wanted: schema.At) -> schema.Exists:
    """Whether there is something, behind symbolic links."""
    return schema.Exists(exists=await (await _files(services, actor, sandbox)).exists(wanted))


@routes.post("/v1/sandboxes/{sandbox}/files/list", response_model=schema.Entries)
@may(Permission.LOOK)
async def listing(services: Services, actor: Actor, sandbox: str, wanted: schema.ListFiles) -> schema.Entries:
    """The entries of a directory, sorted by name; `more` when there are further ones, after the last."""
    return await (await _files(services, actor, sandbox)).list(wanted)


@routes.post("/v1/sandboxes/{sandbox}/files/glob", response_model=schema.Paths)
@may(Permission.LOOK)
async def glob(services: Services, actor: Actor, sandbox: str, wanted: schema.Glob) -> schema.Paths:
    """Paths that match, sorted; `**` goes through directories."""
    return await (await _files(services, actor, sandbox)).glob(wanted)


@routes.post("/v1/sandboxes/{sandbox}/files/mkdir", status_code=204)
async def mkdir(services: Services, actor: Actor, sandbox: str, wanted: schema.Mkdir) -> None:
    """Make a directory; with `parents` those above too, and it is no error if it is there."""
    await (await _files(services, actor, sandbox)).mkdir(wanted)


@routes.post("/v1/sandboxes/{sandbox}/files/remove", status_code=204)
async def remove(services: Services, actor: Actor, sandbox: str, wanted: schema.Remove) -> None:
    """Remove a file, an empty directory, or with `recursive` a whole one."""
    await (await _files(services, actor, sandbox)).remove(wanted)


@routes.post("/v1/sandboxes/{sandbox}/files/move", status_code=204)
async def move(services: Services, actor: Actor, sandbox: str, wanted: schema.Move) -> None:
    """Move, also across file systems."""
    await (await _files(services, actor, sandbox)).move(wanted)


@routes.post("/v1/sandboxes/{sandbox}/files/copy", status_code=204)
async def copy(services: Services, actor: Actor, sandbox: str, wanted: schema.Copy) -> None:
    """Copy, keeping modes, owners, times and links."""
    await (await _files(services, actor, sandbox)).copy(wanted)


@routes.post("/v1/sandboxes/{sandbox}/files/chmod", status_code=204)
async def chmod(services: Services, actor: Actor, sandbox: str, wanted: schema.Chmod) -> None:
    """Change permission bits."""
    await (await _files(services, actor, sandbox)).chmod(wanted)


@routes.post("/v1/sandboxes/{sandbox}/files/chown", status_code=204)
async def chown(services: Services, actor: Actor, sandbox: str, wanted: schema.Chown) -> None:
    """Change the owner."""
    await (await _files(services, actor, sandbox)).chown(wanted)


@routes.post("/v1/sandboxes/{sandbox}/files/symlink", status_code=204)
async def symlink(services: Services, actor: Actor, sandbox: str, wanted: schema.Symlink) -> None:
    """Make a symbolic link."""
    await (await _files(services, actor, sandbox)).symlink(wanted)


@routes.get("/v1/sandboxes/{sandbox}/files/watch", response_class=Response, responses=_EVENTS)
@may(Permission.LOOK)
async def watch(request: Request, services: Services, actor: Actor, sandbox: str, query: Annotated[Watched, Query()]) -> Response:
    """Changes below a path, as they happen, without end. `overflow`: some may have been missed, look for yourself."""
    files = await _files(services, actor, sandbox)
    watching = files.watch(query.at, recursive=query.recursive, after=last_event_id(request))
    # Entered here, so that errors are answers and nothing is missed from the moment of the answer on.
    await watching.__aenter__()

    async def events() -> AsyncGenerator[bytes, None]:
        async for position, change in watching:
            yield event(change.model_dump_json(exclude_none=True).encode(), name="event", id=str(position))

    return EventStream(events(), services.streams, owns=watching)


async def _files(services: Services, actor: Actor, sandbox: str) -> Files:
    return services.node.files((await services.sandboxes.use(actor.project, sandbox, wake=True)).id)
