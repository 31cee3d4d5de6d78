"""/v1/snapshots, and taking one of a sandbox."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from corral.api import pages
from corral.api.idempotent import Again, idempotent
from corral.api.route import JSON, Actor, Services, may, router
from corral.control.idempotency import Answer, Claim
from corral.control.roles import Permission
from corral.errors import NotFound
from corral.schema.snapshot import Snapshot, SnapshotCreate, SnapshotPage, SnapshotUpdate

routes = router("snapshots", 409, 410, 429, 507)


class Listing(BaseModel):
    """What GET /v1/snapshots may be asked."""

    model_config = ConfigDict(extra="forbid")

    sandbox: str | None = Field(None, max_length=63, description="only those of this sandbox, by its id")
    shared: bool = Field(False, description="those of other projects that are shared with this one, in place of its own")
    limit: int = Field(100, ge=1, le=1000)
    cursor: str | None = Field(None, max_length=256, description="`next` of the page before")


class Deletion(BaseModel):
    """How DELETE /v1/snapshots/{snapshot} may be asked."""

    model_config = ConfigDict(extra="forbid")

    cascade: bool = Field(False, description="also the snapshots that stand on it; sandboxes of it go on")


@routes.post("/v1/sandboxes/{sandbox}/snapshots", status_code=201, response_model=Snapshot)
async def create(request: Request, services: Services, actor: Actor, sandbox: str, wanted: SnapshotCreate) -> Response:
    """Keep its disk as it is now, as an image; with `memory`, its processes and their memory too. The sandbox goes on. `Idempotency-Key` makes it safe to repeat."""

    async def make(claim: Claim | None) -> Answer:
        record, timing = await services.snapshots.create(actor, sandbox, wanted.name, memory=wanted.memory, claim=claim)
        return Answer(201, record.show(timing=timing).model_dump_json().encode())

    answer = await idempotent(request, services, actor, make, again=again(services, actor))
    return Response(answer.body, answer.status, None, JSON)


@routes.get("/v1/snapshots", response_model=SnapshotPage)
@may(Permission.LOOK)
async def listing(services: Services, actor: Actor, query: Annotated[Listing, Query()]) -> SnapshotPage:
    """Snapshots of the project, newest first; without checkpoints."""
    before = pages.position(query.cursor)
    records = services.snapshots.page(actor.project, sandbox=query.sandbox, before=before, limit=query.limit + 1, shared=query.shared)
    more = len(records) > query.limit
    records = records[: query.limit]
    return SnapshotPage(
        snapshots=[record.show(to=actor.project) for record in records], next=pages.cursor(records[-1].created_at, records[-1].id) if more else None
    )


@routes.get("/v1/snapshots/{snapshot}", response_model=Snapshot)
@may(Permission.LOOK)
async def get(services: Services, actor: Actor, snapshot: str) -> Snapshot:
    """One snapshot, by its id or name; one that another project shares with this one, by its id."""
    record = services.snapshots.look(actor.project, snapshot)
    return record.show(unshared=services.snapshots.unshared(record), to=actor.project)


@routes.patch("/v1/snapshots/{snapshot}", response_model=Snapshot)
async def update(services: Services, actor: Actor, snapshot: str, wanted: SnapshotUpdate) -> Snapshot:
    """Say which other projects may start sandboxes of it."""
    for project in wanted.shared_with:
        services.accounts.project(project)
    return (await services.snapshots.share(actor, snapshot, wanted.shared_with)).show()


@routes.delete("/v1/snapshots/{snapshot}", response_model=Snapshot)
async def delete(services: Services, actor: Actor, snapshot: str, query: Annotated[Deletion, Query()]) -> Snapshot:
    """Delete it. Refused while a sandbox or another snapshot stands on it, unless asked to cascade."""
    return (await services.snapshots.delete(actor, snapshot, cascade=query.cascade)).show()


def again(services: Services, actor: Actor) -> Again:
    """Finds what an earlier server made and did not answer."""

    async def find(id: str) -> Answer | None:
        try:
            record = services.snapshots.get(actor.project, id)
        except NotFound:
            return None
        return Answer(201, record.show().model_dump_json().encode())

    return find
