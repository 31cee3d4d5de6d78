"""/v1/sandboxes/{sandbox}/processes: start them, look at them, signal and end them."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from corral.api.lifelines import PATIENCE
from corral.api.output import follow, process_event
from corral.api.route import JSON, Actor, Services, may, raw_body, router
from corral.api.stream import EVENT_STREAM, EventStream
from corral.control import idempotency
from corral.control.idempotency import Answer
from corral.control.ports import ProcessBook
from corral.control.roles import Permission
from corral.errors import InvalidArgument
from corral.schema.process import Process, Processes, ProcessStart, Signal, Terminal

routes = router("processes", 409, 410, 429)

LONGEST_WAIT = 600.0
_STARTED: dict[int | str, dict[str, Any]] = {
    201: {"description": "The process; or with `Accept: text/event-stream` its output (events `process`, `output`, `exit`)", "content": {EVENT_STREAM: {}}}
}


class Starting(BaseModel):
    """What POST …/processes may be asked besides."""

    model_config = ConfigDict(extra="forbid")

    kill_on_disconnect: bool = Field(
        default=False,
        description="with an event stream: the client that hangs up before the end kills the process and all it started; with an Idempotency-Key it may come back within 10 seconds, by GET …/output",
    )


class Waiting(BaseModel):
    """What GET …/wait may be asked."""

    model_config = ConfigDict(extra="forbid")

    timeout: float = Field(30.0, ge=0, le=LONGEST_WAIT, allow_inf_nan=False, description="seconds")


@routes.post("/v1/sandboxes/{sandbox}/processes", status_code=201, response_model=Process, responses=_STARTED)
async def start(request: Request, services: Services, actor: Actor, sandbox: str, query: Annotated[Starting, Query()], wanted: ProcessStart) -> Response:
    """Start a process. It lives until it ends, is killed, runs into its timeout, or its sandbox ends: no client is needed for it."""
    streams = EVENT_STREAM in request.headers.get("accept", "")
    if query.kill_on_disconnect and not streams:
        raise InvalidArgument("kill_on_disconnect: there is nothing to disconnect from without an event stream", hint=f"ask with `Accept: {EVENT_STREAM}`")
    record = await services.sandboxes.use(actor.project, sandbox, wake=True)
    book = services.node.processes(record.id)
    id: str | None = None
    if (key := request.headers.get("idempotency-key")) is not None:
        claim = idempotency.claim(actor.project, key, method="POST", path=record.id, body=raw_body(request))
        id = _process_id(record.id, key)

        async def make() -> Answer:
            return Answer(201, (await book.start(wanted, id=id)).model_dump_json().encode())

        # The book starts an id once, also in a later server: only that the request is the same is remembered here.
        process = Process.model_validate_json((await services.replays.once(claim, make)).body)
    else:
        process = await book.start(wanted)
    services.meter.processes.inc()
    if not streams:
        return Response(process.model_dump_json(), 201, media_type=JSON)

    async def events() -> AsyncGenerator[bytes, None]:
        yield process_event(process)
        async for item in follow(book, process.id, services.meter):
            yield item

    if not query.kill_on_disconnect:
        return EventStream(events(), services.streams, status=201)
    line = services.lifelines.hold(book, process.id, patience=0.0 if key is None else PATIENCE)
    return EventStream(line.held(events()), services.streams, status=201, on_hang_up=line.hung_up)


@routes.get("/v1/sandboxes/{sandbox}/processes", response_model=Processes)
@may(Permission.LOOK)
async def listing(services: Services, actor: Actor, sandbox: str) -> Processes:
    """Those started through the API, running and ended, oldest first."""
    return Processes(processes=(await _book(services, actor, sandbox)).list())


@routes.get("/v1/sandboxes/{sandbox}/processes/{process}", response_model=Process)
@may(Permission.LOOK)
async def get(services: Services, actor: Actor, sandbox: str, process: str) -> Process:
    """One process. It is kept for a while after its end."""
    return (await _book(services, actor, sandbox)).get(process)


@routes.get("/v1/sandboxes/{sandbox}/processes/{process}/wait", response_model=Process)
@may(Permission.LOOK)
async def wait(services: Services, actor: Actor, sandbox: str, process: str, query: Annotated[Waiting, Query()]) -> Process:
    """The process when it has ended, or as it is after `timeout` seconds (or when the server leaves)."""
    book = await _book(services, actor, sandbox)
    waiting = asyncio.get_running_loop().create_task(book.wait(process, query.timeout))
    services.streams.add(waiting)
    try:
        return await waiting
    except asyncio.CancelledError:
        if not services.streams.leaving:
            raise
        return book.get(process)


@routes.post("/v1/sandboxes/{sandbox}/processes/{process}/signal", status_code=204)
async def signal(services: Services, actor: Actor, sandbox: str, process: str, wanted: Signal) -> None:
    """Send a signal to the process, to its group, or to everything it started."""
    await (await _book(services, actor, sandbox, wake=True)).signal(process, wanted)


@routes.post("/v1/sandboxes/{sandbox}/processes/{process}/resize", status_code=204)
async def resize(services: Services, actor: Actor, sandbox: str, process: str, wanted: Terminal) -> None:
    """Tell its terminal the new size."""
    await (await _book(services, actor, sandbox, wake=True)).resize(process, wanted)


@routes.delete("/v1/sandboxes/{sandbox}/processes/{process}", status_code=204)
async def delete(services: Services, actor: Actor, sandbox: str, process: str) -> None:
    """Kill it, with everything it started, and forget it and its output."""
    await (await _book(services, actor, sandbox, wake=True)).forget(process)


async def _book(services: Services, actor: Actor, sandbox: str, *, wake: bool = False) -> ProcessBook:
    return services.node.processes((await services.sandboxes.use(actor.project, sandbox, wake=wake)).id)


def _process_id(sandbox: str, key: str) -> str:
    digest = hashlib.sha256(f"{sandbox}\0{key}".encode()).digest()
    return "pr-" + base64.b32encode(digest[:10]).decode().lower()
