"""/v1/sandboxes/{sandbox}/code: contexts of the code interpreter, and executions in them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

import msgspec
from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from corral.api.route import JSON, Actor, Services, may, router
from corral.api.stream import EVENT_STREAM, EventStream, event, hung_up
from corral.code import lines
from corral.code.contexts import Execution, Gap
from corral.code.gather import gather
from corral.code.lines import Line
from corral.control.roles import Permission
from corral.errors import InvalidState
from corral.schema.code import CodeBegin, CodeContext, CodeContextCreate, CodeContexts, CodeExecution, CodeRun

routes = router("code", 409, 410, 429)

_EXECUTED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The execution when it has ended; or with `Accept: text/event-stream` the events `execution` (CodeBegin), `stdout` and `stderr` (CodeText), "
        "`result` (CodeResult), `raised` (CodeError), `count` (CodeCount), `dropped` (CodeDropped) and at last `end` (CodeEnd). A client that hangs up interrupts it",
        "content": {EVENT_STREAM: {}},
    }
}
_EVENTS: dict[int | str, dict[str, Any]] = {200: {"description": "Events as of POST …/executions", "content": {EVENT_STREAM: {}}}}


class In(BaseModel):
    """Which context an execution is in."""

    model_config = ConfigDict(extra="forbid")

    context: str = Field(max_length=63)


class From(BaseModel):
    """Where GET …/executions/{execution}/events goes on."""

    model_config = ConfigDict(extra="forbid")

    context: str = Field(max_length=63, description="the context it is in")
    after: int = Field(ge=0, lt=1 << 63, description="the id of the last event that was seen")


@routes.post("/v1/sandboxes/{sandbox}/code/executions", response_model=CodeExecution, responses=_EXECUTED)
async def execute(request: Request, services: Services, actor: Actor, sandbox: str, wanted: CodeRun) -> Response:
    """Execute code in a context, after what waits there already. Its variables stay."""
    record = await services.sandboxes.use(actor.project, sandbox)
    execution = await services.code.execute(record.id, wanted)
    services.meter.executions.inc()
    if EVENT_STREAM in request.headers.get("accept", ""):
        return EventStream(_begun(execution), services.streams, on_hang_up=execution.stop)
    return Response((await _whole(request, execution)).model_dump_json(), media_type=JSON)


@routes.get("/v1/sandboxes/{sandbox}/code/executions/{execution}/events", response_class=Response, responses=_EVENTS)
async def events(services: Services, actor: Actor, sandbox: str, execution: str, query: Annotated[From, Query()]) -> Response:
    """Go on with the events of an execution whose stream broke, for as long as its context keeps them. This client, too, interrupts it by hanging up."""
    record = await services.sandboxes.use(actor.project, sandbox)
    found = services.code.execution(record.id, query.context, execution, query.after)
    return EventStream(_events(found), services.streams, on_hang_up=found.stop)


@routes.delete("/v1/sandboxes/{sandbox}/code/executions/{execution}", status_code=204)
async def stop(services: Services, actor: Actor, sandbox: str, execution: str, query: Annotated[In, Query()]) -> None:
    """Interrupt it, or take it out of the queue. Nothing happens when it has ended."""
    record = await services.sandboxes.use(actor.project, sandbox)
    await services.code.execution(record.id, query.context, execution, 0).stop()


@routes.post("/v1/sandboxes/{sandbox}/code/contexts", status_code=201, response_model=CodeContext)
async def create(services: Services, actor: Actor, sandbox: str, wanted: CodeContextCreate) -> CodeContext:
    """A new context, when its kernel answers."""
    return await services.code.create((await services.sandboxes.use(actor.project, sandbox)).id, wanted)


@routes.get("/v1/sandboxes/{sandbox}/code/contexts", response_model=CodeContexts)
@may(Permission.LOOK)
async def listing(services: Services, actor: Actor, sandbox: str) -> CodeContexts:
    """Its contexts. The default one of a language is made by the first execution that asks for it."""
    return CodeContexts(contexts=services.code.list((await services.sandboxes.use(actor.project, sandbox)).id))


@routes.post("/v1/sandboxes/{sandbox}/code/contexts/{context}/restart", status_code=204)
async def restart(services: Services, actor: Actor, sandbox: str, context: str) -> None:
    """Start its kernel anew, without the variables. What runs or waits in it ends."""
    await services.code.restart((await services.sandboxes.use(actor.project, sandbox)).id, context)


@routes.post("/v1/sandboxes/{sandbox}/code/contexts/{context}/interrupt", status_code=204)
async def interrupt(services: Services, actor: Actor, sandbox: str, context: str) -> None:
    """Interrupt what runs in it now, if anything does."""
    await services.code.interrupt((await services.sandboxes.use(actor.project, sandbox)).id, context)


@routes.delete("/v1/sandboxes/{sandbox}/code/contexts/{context}", status_code=204)
async def remove(services: Services, actor: Actor, sandbox: str, context: str) -> None:
    """End it, and what runs in it."""
    await services.code.remove((await services.sandboxes.use(actor.project, sandbox)).id, context)


async def _begun(execution: Execution) -> AsyncGenerator[bytes, None]:
    begin = CodeBegin(execution=execution.id, context=execution.context)
    yield event(begin.model_dump_json().encode(), name="execution", id=str(execution.offset))
    async with aclosing(_events(execution)) as rest:
        async for item in rest:
            yield item


async def _events(execution: Execution) -> AsyncGenerator[bytes, None]:
    async with aclosing(execution.events()) as said:
        async for position, line in said:
            if (shown := _shown(line)) is not None:
                name, fields = shown
                yield event(msgspec.json.encode(fields), name=name, id=str(position))


def _shown(line: Line | Gap) -> tuple[str, dict[str, object]] | None:
    match line:
        case lines.Stdout():
            return "stdout", {"text": line.text, "at": line.at}
        case lines.Stderr():
            return "stderr", {"text": line.text, "at": line.at}
        case lines.Result():
            return "result", {"main": line.main, "data": line.data, "omitted": line.omitted}
        case lines.Error():
            return "raised", {"name": line.name, "value": line.value, "traceback": line.traceback}
        case lines.Count():
            return "count", {"count": line.count}
        case Gap():
            return "dropped", {"bytes": line.bytes}
        case lines.End():
            return "end", {"status": line.status, "seconds": line.seconds, "count": line.count, "exit_code": line.code}
        case _:
            return None


async def _whole(request: Request, execution: Execution) -> CodeExecution:
    """Its end, unless the client hangs up before."""
    loop = asyncio.get_running_loop()
    gathering, watch = loop.create_task(gather(execution)), loop.create_task(hung_up(request.receive))
    try:
        await asyncio.wait((gathering, watch), return_when=asyncio.FIRST_COMPLETED)
    finally:
        watch.cancel()
        ended = gathering.done() and gathering.exception() is None
        gathering.cancel()
        if not ended:
            await asyncio.shield(execution.stop())
    if not ended and not gathering.done():
        raise InvalidState("the client hung up")
    return gathering.result()
