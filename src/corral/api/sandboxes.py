"""/v1/sandboxes: create, look at, change and end them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from corral.api import errors, pages
from corral.api.idempotent import idempotent
from corral.api.route import JSON, Actor, Services, may, router
from corral.code.start import IMAGE, WARM
from corral.control.idempotency import Answer, Claim
from corral.control.lifecycle import LIVING
from corral.control.record import Record
from corral.control.roles import Permission
from corral.errors import CorralError, InvalidArgument
from corral.schema.fork import Fork, Forks, SandboxFork
from corral.schema.sandbox import Sandbox, SandboxCreate, SandboxDelete, SandboxExtend, SandboxPage, SandboxUpdate, State

routes = router("sandboxes", 409, 410, 429)


class Listing(BaseModel):
    """What GET /v1/sandboxes may be asked."""

    model_config = ConfigDict(extra="forbid")

    tag: list[str] = Field(default_factory=list[str], description="`name=value`; given again, all must match")
    state: list[State] = Field(default_factory=list[State], description="given again, any may match; default: those that live")
    limit: int = Field(100, ge=1, le=1000)
    cursor: str | None = Field(None, max_length=256, description="`next` of the page before")


@routes.post("/v1/sandboxes", status_code=201, response_model=Sandbox)
async def create(request: Request, services: Services, actor: Actor, wanted: SandboxCreate) -> Response:
    """Create a sandbox and start it. `Server-Timing` tells how long each phase took. `Idempotency-Key` makes it safe to repeat."""
    timing: dict[str, float] = {}

    async def make(claim: Claim | None) -> Answer:
        record = await services.sandboxes.create(actor, wanted, claim=claim)
        timing.update(record.timing or {})
        services.meter.created(timing)
        if record.image == IMAGE:
            services.code.warm(record.id, WARM)
        return Answer(201, record.show().model_dump_json().encode())

    async def again(id: str) -> Answer | None:
        record = await services.sandboxes.get(actor.project, id)
        return Answer(201, record.show().model_dump_json().encode()) if record.state in LIVING else None

    answer = await services.abandoned.watch(request, actor, idempotent(request, services, actor, make, again=again))
    headers = {"Server-Timing": ", ".join(f"{phase};dur={seconds * 1000:.3f}" for phase, seconds in timing.items())} if timing else None
    return Response(answer.body, answer.status, headers, JSON)


@routes.get("/v1/sandboxes", response_model=SandboxPage)
@may(Permission.LOOK)
async def listing(services: Services, actor: Actor, query: Annotated[Listing, Query()]) -> SandboxPage:
    """Sandboxes of the project, newest first."""
    tags = dict(_tag(text) for text in query.tag)
    if State.FROZEN in query.state:
        raise InvalidArgument("state: a frozen sandbox is running", hint="ask for running, and look at `frozen` of each", details={"field": "state"})
    states = frozenset(query.state) or LIVING
    records = await services.sandboxes.page(actor.project, states=states, tags=tags, before=pages.position(query.cursor), limit=query.limit + 1)
    more = len(records) > query.limit
    records = records[: query.limit]
    return SandboxPage(sandboxes=[_shown(services, record) for record in records], next=pages.cursor(records[-1].created_at, records[-1].id) if more else None)


@routes.post("/v1/sandboxes/delete", response_model=SandboxPage)
async def delete_many(services: Services, actor: Actor, wanted: SandboxDelete) -> SandboxPage:
    """End many at once: those named, or all that have these tags."""
    ids = wanted.sandboxes if wanted.sandboxes is not None else services.sandboxes.tagged(actor.project, wanted.tags or {})
    records = await services.sandboxes.delete_many(actor, ids)
    return SandboxPage(sandboxes=[record.show() for record in records], next=None)


@routes.get("/v1/sandboxes/{sandbox}", response_model=Sandbox)
@may(Permission.LOOK)
async def get(services: Services, actor: Actor, sandbox: str) -> Sandbox:
    """One sandbox, by its id or name; one that has ended, by its id, for an hour."""
    return _shown(services, await services.sandboxes.get(actor.project, sandbox))


@routes.patch("/v1/sandboxes/{sandbox}", response_model=Sandbox)
async def update(services: Services, actor: Actor, sandbox: str, wanted: SandboxUpdate) -> Sandbox:
    """Change what is given. A timeout counts from now; null takes a name or a time away."""
    return _shown(services, await services.sandboxes.update(actor, sandbox, wanted))


@routes.delete("/v1/sandboxes/{sandbox}", response_model=Sandbox)
async def delete(services: Services, actor: Actor, sandbox: str) -> Sandbox:
    """End it, with everything in it. Nothing happens when it has ended already."""
    return (await services.sandboxes.delete(actor, sandbox)).show()


@routes.post("/v1/sandboxes/{sandbox}/extend", response_model=Sandbox)
async def extend(services: Services, actor: Actor, sandbox: str, wanted: SandboxExtend) -> Sandbox:
    """Move its deadline to at least so many seconds from now."""
    return _shown(services, await services.sandboxes.extend(actor, sandbox, wanted.seconds))


@routes.post("/v1/sandboxes/{sandbox}/stop", response_model=Sandbox)
async def stop(services: Services, actor: Actor, sandbox: str) -> Sandbox:
    """End its processes and free its memory; the disk is kept."""
    return (await services.sandboxes.stop(actor, sandbox)).show()


@routes.post("/v1/sandboxes/{sandbox}/start", response_model=Sandbox)
async def start(services: Services, actor: Actor, sandbox: str) -> Sandbox:
    """Start a stopped one again with its disk."""
    return _shown(services, await services.sandboxes.start(actor, sandbox))


def _shown(services: Services, record: Record) -> Sandbox:
    return record.show(frozen=record.state is State.RUNNING and services.node.frozen(record.id))


@routes.post("/v1/sandboxes/{sandbox}/pause", response_model=Sandbox)
async def pause(services: Services, actor: Actor, sandbox: str) -> Sandbox:
    """Keep its processes, memory and disk on the disk and free the machine of it. The next command, file access or resume has it go on."""
    return (await services.sandboxes.pauses.pause(actor, sandbox)).show()


@routes.post("/v1/sandboxes/{sandbox}/resume", response_model=Sandbox)
async def resume(services: Services, actor: Actor, sandbox: str) -> Sandbox:
    """Have a paused one go on where it was."""
    return (await services.sandboxes.pauses.resume(actor, sandbox)).show()


@routes.post("/v1/sandboxes/{sandbox}/fork", status_code=201, response_model=Forks)
async def fork(request: Request, services: Services, actor: Actor, sandbox: str, wanted: SandboxFork) -> Response:
    """New sandboxes with its disk, its memory and all its processes, while it goes on; for each the sandbox, or why there is none. `Idempotency-Key` makes it safe to repeat."""

    def told(made: Sequence[Record | CorralError]) -> Answer:
        stopped = max((one.timing.get("stopped", 0.0) for one in made if isinstance(one, Record) and one.timing), default=0.0)
        forks = [Fork(sandbox=one.show()) if isinstance(one, Record) else Fork(error=errors.info(one)) for one in made]
        return Answer(201, Forks(forks=forks, stopped=stopped).model_dump_json().encode())

    async def make(claim: Claim | None) -> Answer:
        return told(await services.sandboxes.forks.fork(actor, sandbox, wanted, claim=claim))

    async def again(id: str) -> Answer | None:
        made = await services.sandboxes.forks.again(actor.project, id, wanted)
        return None if made is None else told(made)

    answer = await services.abandoned.watch(request, actor, idempotent(request, services, actor, make, again=again))
    return Response(answer.body, answer.status, None, JSON)


def _tag(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise InvalidArgument(f"tag: {text[:80]!r} is not of the form name=value", hint="as in ?tag=run=7", details={"field": "tag"})
    return name, value
