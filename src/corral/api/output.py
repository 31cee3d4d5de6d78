"""Output of processes: as events, as raw bytes; and their standard input. The paths that every byte takes."""

from __future__ import annotations

import binascii
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from corral.api.body import pieces
from corral.api.lifelines import PATIENCE
from corral.api.meter import Meter
from corral.api.route import Actor, Services, may, router
from corral.api.stream import EVENT_STREAM, ByteStream, EventStream, event, finishing
from corral.control.ports import Chunk, ProcessBook
from corral.control.roles import Permission
from corral.errors import InternalError, InvalidArgument, InvalidState
from corral.schema.process import Process, StdinAnswer, Stream

routes = router("output", 409, 410)

_BYTES: dict[str, Any] = {"requestBody": {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}}
_EVENTS: dict[int | str, dict[str, Any]] = {200: {"description": "Events `output` (Output) and at last `exit` (Process)", "content": {EVENT_STREAM: {}}}}
_RAW: dict[int | str, dict[str, Any]] = {200: {"description": "The bytes. `Corral-Offset` is that of the first", "content": {"application/octet-stream": {}}}}


class From(BaseModel):
    """Where GET …/output begins. `Last-Event-ID` (`{stdout}:{stderr}`) counts more."""

    model_config = ConfigDict(extra="forbid")

    stdout: int = Field(0, ge=0, lt=1 << 63)
    stderr: int = Field(0, ge=0, lt=1 << 63)
    follow: bool = Field(default=True, description="false: end with what there is now")
    kill_on_disconnect: bool = Field(
        default=False, description="this client takes the place of the one that started the process with it, and kills the process when it hangs up"
    )


class RawFrom(BaseModel):
    """Where GET …/stdout and …/stderr begin."""

    model_config = ConfigDict(extra="forbid")

    offset: int = Field(0, ge=0, lt=1 << 63)
    follow: bool = True


class StdinAt(BaseModel):
    """What POST …/stdin may be asked."""

    model_config = ConfigDict(extra="forbid")

    offset: int | None = Field(
        None, ge=0, lt=1 << 63, description="of the first byte; bytes below what was accepted are skipped, so that a repeated request adds nothing"
    )
    eof: bool = Field(default=False, description="nothing follows")


@routes.get("/v1/sandboxes/{sandbox}/processes/{process}/output", response_class=Response, responses=_EVENTS)
@may(Permission.LOOK)
async def output(request: Request, services: Services, actor: Actor, sandbox: str, process: str, query: Annotated[From, Query()]) -> Response:
    """Both streams as events, from these offsets on, until the process has ended and all it wrote was given."""
    book = await _book(services, actor, sandbox)
    book.get(process)
    stdout, stderr = _resumed(request) or (query.stdout, query.stderr)
    events = follow(book, process, services.meter, stdout, stderr, wait=query.follow)
    if not query.kill_on_disconnect:
        return EventStream(events, services.streams)
    actor.require(Permission.USE)
    line = services.lifelines.hold(book, process, patience=PATIENCE)
    return EventStream(line.held(events), services.streams, on_hang_up=line.hung_up)


@routes.get("/v1/sandboxes/{sandbox}/processes/{process}/stdout", response_class=Response, responses=_RAW)
@may(Permission.LOOK)
async def stdout(services: Services, actor: Actor, sandbox: str, process: str, query: Annotated[RawFrom, Query()]) -> Response:
    """Standard output as it is."""
    return _raw(await _book(services, actor, sandbox), services, process, Stream.STDOUT, query)


@routes.get("/v1/sandboxes/{sandbox}/processes/{process}/stderr", response_class=Response, responses=_RAW)
@may(Permission.LOOK)
async def stderr(services: Services, actor: Actor, sandbox: str, process: str, query: Annotated[RawFrom, Query()]) -> Response:
    """Standard error as it is."""
    return _raw(await _book(services, actor, sandbox), services, process, Stream.STDERR, query)


@routes.post("/v1/sandboxes/{sandbox}/processes/{process}/stdin", response_model=StdinAnswer, openapi_extra=_BYTES)
async def stdin(request: Request, services: Services, actor: Actor, sandbox: str, process: str, query: Annotated[StdinAt, Query()]) -> StdinAnswer:
    """Write to standard input; answered when the sandbox has taken the bytes."""
    book = await _book(services, actor, sandbox, wake=True)
    offset = query.offset
    end = book.get(process).stdin_offset
    async for piece in pieces(request):
        end = await _write(book, process, piece, offset=offset, eof=False)
        services.meter.stdin.inc(len(piece))
        if offset is not None:
            offset += len(piece)
    if query.eof:
        end = await _write(book, process, b"", offset=offset, eof=True)
    return StdinAnswer(offset=end)


async def _write(book: ProcessBook, process: str, piece: bytes, *, offset: int | None, eof: bool) -> int:
    try:
        return await book.write_stdin(process, piece, offset=offset, eof=eof)
    except InvalidState:
        # A repetition of what was accepted before it ended is answered as it was then.
        accepted = book.get(process).stdin_offset
        if offset is None or offset + len(piece) > accepted:
            raise
        return accepted


async def follow(book: ProcessBook, id: str, meter: Meter, stdout: int = 0, stderr: int = 0, *, wait: bool = True) -> AsyncGenerator[bytes, None]:
    """The events of a process' output, and at last its end; without `wait` of what there is."""
    at = {Stream.STDOUT: stdout, Stream.STDERR: stderr}
    async with finishing(book.raw_output(id, stdout, stderr, follow=wait)) as items:
        async for item in items:
            if isinstance(item, Process):
                if not item.running:
                    yield exit_event(item)
                return
            at[item.stream] = item.offset + len(item.data)
            meter.output.inc(len(item.data))
            yield _output_event(item, at[Stream.STDOUT], at[Stream.STDERR])


def process_event(process: Process) -> bytes:
    return event(process.model_dump_json().encode(), name="process")


def exit_event(process: Process) -> bytes:
    return event(process.model_dump_json().encode(), name="exit")


def _output_event(chunk: Chunk, stdout: int, stderr: int) -> bytes:
    # As Output.model_dump_json would, without making one of each piece.
    data = binascii.b2a_base64(chunk.data, newline=False)
    return b'id: %d:%d\nevent: output\ndata: {"stream":"%b","offset":%d,"data":"%b","dropped":%d}\n\n' % (
        stdout,
        stderr,
        chunk.stream.encode(),
        chunk.offset,
        data,
        chunk.dropped,
    )


def _raw(book: ProcessBook, services: Services, id: str, stream: Stream, query: RawFrom) -> Response:
    known = book.get(id)
    start = known.stdout_start if stream is Stream.STDOUT else known.stderr_start
    first = max(query.offset, start)

    async def body() -> AsyncGenerator[bytes, None]:
        at = first
        stdout, stderr = (first, None) if stream is Stream.STDOUT else (None, first)
        async with finishing(book.raw_output(id, stdout, stderr, follow=query.follow)) as items:
            async for item in items:
                if isinstance(item, Process):
                    return
                if item.offset != at:
                    raise InternalError(f"the reader was too slow: {item.offset - at} bytes are gone")
                at += len(item.data)
                services.meter.output.inc(len(item.data))
                yield item.data

    return ByteStream(body(), services.streams, headers={"Corral-Offset": str(first)})


def _resumed(request: Request) -> tuple[int, int] | None:
    last = request.headers.get("last-event-id")
    if not last:
        return None
    stdout, colon, stderr = last.partition(":")
    if not (colon and stdout.isdecimal() and stderr.isdecimal() and len(last) < 40):
        raise InvalidArgument(f"Last-Event-ID: {last[:60]!r} is no id of this stream", hint="it looks like 4096:0", details={"field": "Last-Event-ID"})
    return int(stdout), int(stderr)


async def _book(services: Services, actor: Actor, sandbox: str, *, wake: bool = False) -> ProcessBook:
    return services.node.processes((await services.sandboxes.use(actor.project, sandbox, wake=wake)).id)
