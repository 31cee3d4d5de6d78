"""process.Process of E2B: the sandbox's own processes, found by their number or tag.

A process lives until it ends, is killed, or its deadline passes; no client is needed for it. Who comes late gets its output from the beginning.
"""

from __future__ import annotations

import base64
import time
from collections.abc import AsyncGenerator

from starlette.requests import Request
from starlette.responses import Response

from corral import errors
from corral.api.stream import finishing
from corral.facades.e2b.envd import fields
from corral.facades.e2b.envd.connect import Code, Message, RpcError, collecting, deadline, streaming, unary
from corral.facades.e2b.inside import Inside
from corral.schema.process import Process, ProcessStart, Signal, Stream, Terminal

REMEMBERED = 30.0
"""Seconds after its end for which a process can still be connected to."""
_ALIVE: Message = {"event": {"keepalive": {}}}
_SIGNALS = {"SIGNAL_SIGTERM": 15, "SIGNAL_SIGKILL": 9, 15: 15, 9: 9}
_NAMES = {1: "hangup", 2: "interrupt", 3: "quit", 6: "aborted", 9: "killed", 11: "segmentation fault", 13: "broken pipe", 14: "alarm clock", 15: "terminated"}


async def start(request: Request, inside: Inside) -> Response:
    """Start a process and tell what becomes of it. The deadline of the call is the process' own."""
    timeout = deadline(request)

    async def call(message: Message) -> AsyncGenerator[Message, None]:
        process = await _start(inside, message, timeout)
        inside.services.meter.processes.inc()
        async with finishing(_follow(inside, process)) as told:
            async for one in told:
                yield one

    # The node kills it at its deadline; that the call ends with it is said by `_ended`, which knows.
    return await streaming(request, inside.services.streams, call, sign=_ALIVE, timeout=None)


async def connect(request: Request, inside: Inside) -> Response:
    """Tell what becomes of a process that was started before. The deadline ends the call only."""

    async def call(message: Message) -> AsyncGenerator[Message, None]:
        process = _selected(inside, message, ended=True)
        async with finishing(_follow(inside, process)) as told:
            async for one in told:
                yield one

    return await streaming(request, inside.services.streams, call, sign=_ALIVE, timeout=deadline(request))


async def listing(request: Request, inside: Inside) -> Response:
    async def call(_message: Message) -> Message:
        return {"processes": [_show(inside, process) for process in inside.processes.list() if process.running and process.pid is not None]}

    return await unary(request, call)


async def update(request: Request, inside: Inside) -> Response:
    """The size of a terminal."""

    async def call(message: Message) -> Message:
        process = _selected(inside, message)
        size = _terminal(message)
        if size is not None:
            if not process.pty:
                raise RpcError(Code.FAILED_PRECONDITION, f"process with pid {process.pid} has no terminal")
            await inside.processes.resize(process.id, size)
        return {}

    return await unary(request, call)


async def send_input(request: Request, inside: Inside) -> Response:
    async def call(message: Message) -> Message:
        await _write(inside, _selected(inside, message), fields.inner(message, "input") or {})
        return {}

    return await unary(request, call)


async def stream_input(request: Request, inside: Inside) -> Response:
    """A stream of pieces of standard input, after a first message that says of which process."""
    process: Process | None = None

    async def take(message: Message) -> None:
        nonlocal process
        if (begins := fields.inner(message, "start")) is not None:
            process = _selected(inside, begins)
        elif (data := fields.inner(message, "data")) is not None:
            if process is None:
                raise RpcError(Code.INVALID_ARGUMENT, "data before the message that says of which process")
            await _write(inside, process, fields.inner(data, "input") or {})

    return await collecting(request, take)


async def send_signal(request: Request, inside: Inside) -> Response:
    async def call(message: Message) -> Message:
        process = _selected(inside, message)
        number = _SIGNALS.get(message.get("signal") or 0)
        if number is None:
            raise RpcError(Code.UNIMPLEMENTED, f"invalid signal: {message.get('signal')}")
        try:
            await inside.processes.signal(process.id, Signal(signal=number, to="group"))
        except errors.InvalidState:
            raise _unknown(f"pid {process.pid}") from None
        return {}

    return await unary(request, call)


async def close_stdin(request: Request, inside: Inside) -> Response:
    async def call(message: Message) -> Message:
        process = _selected(inside, message)
        if process.pty:
            raise RpcError(Code.FAILED_PRECONDITION, "a terminal has no standard input to close; send it Ctrl+D (0x04)")
        await inside.processes.write_stdin(process.id, b"", eof=True)
        return {}

    return await unary(request, call)


# ──


async def _start(inside: Inside, message: Message, timeout: float | None) -> Process:
    wanted = fields.inner(message, "process") or {}
    pty = _terminal(message)
    given = fields.text(wanted, "cwd")
    cwd = await inside.path(given or inside.record.workdir or "~")
    request = ProcessStart(
        command=None,
        argv=[fields.text(wanted, "cmd"), *fields.texts(wanted, "args")],
        env=dict(fields.words(wanted, "envs")),
        cwd=cwd,
        user=inside.user,
        stdin=_takes_input(message),
        pty=pty,
        timeout=timeout,
        tag=fields.maybe_text(message, "tag"),
    )
    try:
        process = await inside.processes.start(request)
    except (errors.FileNotFound, errors.NotADirectory):
        raise RpcError(Code.INVALID_ARGUMENT, f"cwd '{cwd}' does not exist") from None
    inside.given.keep(process.id, request.env)
    return process


def _takes_input(message: Message) -> bool:
    """Clients from before there was such a field expect that it takes some."""
    return True if message.get("stdin") is None else fields.flag(message, "stdin")


def _terminal(message: Message) -> Terminal | None:
    pty = fields.inner(message, "pty")
    if pty is None:
        return None
    size = fields.inner(pty, "size") or {}
    return Terminal(rows=fields.number(size, "rows") or 24, cols=fields.number(size, "cols") or 80)


async def _follow(inside: Inside, process: Process) -> AsyncGenerator[Message, None]:
    yield {"event": {"start": {"pid": process.pid}}}
    meter = inside.services.meter
    async with finishing(inside.processes.raw_output(process.id)) as items:
        async for item in items:
            if isinstance(item, Process):
                yield _ended(item)
                return
            kind = "pty" if process.pty else "stdout" if item.stream is Stream.STDOUT else "stderr"
            meter.output.inc(len(item.data))
            yield {"event": {"data": {kind: base64.b64encode(item.data).decode()}}}


def _ended(process: Process) -> Message:
    if process.timed_out:
        raise RpcError(Code.DEADLINE_EXCEEDED, "the process was killed at its deadline")
    if process.lost or process.exit_code is None:
        raise errors.SandboxEnded("the sandbox ended while the process ran")
    if process.signal is not None:
        status = f"signal: {_NAMES.get(process.signal, process.signal)}"
        return {"event": {"end": {"exitCode": -1, "exited": False, "status": status, "error": status}}}
    status = f"exit status {process.exit_code}"
    failed = {"error": status} if process.exit_code else {}
    return {"event": {"end": {"exitCode": process.exit_code, "exited": True, "status": status, **failed}}}


async def _write(inside: Inside, process: Process, given: Message) -> None:
    name = "pty" if "pty" in given else "stdin"
    if process.pty != (name == "pty"):
        raise RpcError(Code.FAILED_PRECONDITION, "the process has a terminal: send `pty`" if process.pty else "the process has no terminal: send `stdin`")
    if not process.stdin:
        raise RpcError(Code.FAILED_PRECONDITION, "stdin is not enabled for this process")
    data = fields.raw(given, name)
    inside.services.meter.stdin.inc(len(data))
    await inside.processes.write_stdin(process.id, data)


def _selected(inside: Inside, message: Message, *, ended: bool = False) -> Process:
    """The process that is meant: one that runs, or with `ended` one that ended just now. Numbers are used again, so the newest counts."""
    selector = fields.inner(message, "process") or {}
    tag, pid = fields.maybe_text(selector, "tag"), fields.number(selector, "pid")
    now = time.time()
    for process in reversed(inside.processes.list()):
        if not (process.tag == tag if tag else process.pid == pid):
            continue
        recent = process.ended_at is not None and process.ended_at.timestamp() > now - REMEMBERED
        if process.running or (ended and recent):
            return process
    raise _unknown(f"tag {tag}" if tag else f"pid {pid}")


def _unknown(which: str) -> RpcError:
    return RpcError(Code.NOT_FOUND, f"process with {which} not found")


def _show(inside: Inside, process: Process) -> Message:
    config: Message = {"cmd": process.argv[0], "args": process.argv[1:], "envs": inside.given.of(process.id)}
    if process.cwd is not None:
        config["cwd"] = process.cwd
    shown: Message = {"config": config, "pid": process.pid}
    if process.tag is not None:
        shown["tag"] = process.tag
    return shown
