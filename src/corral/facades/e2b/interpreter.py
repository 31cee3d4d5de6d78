"""What E2B's code interpreter clients find at port 49999 of a sandbox: contexts, and executions as lines of JSON. Answered outside the sandbox, by `corral.code`."""

from __future__ import annotations

import asyncio
import hmac
import json
import posixpath
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from corral.api import errors
from corral.api.body import read
from corral.api.services import Services
from corral.api.stream import ByteStream
from corral.code import lines
from corral.code.contexts import Execution, Gap
from corral.code.lines import Line
from corral.code.start import IMAGE, WARM
from corral.control.record import Record
from corral.errors import CorralError, NotFound
from corral.facades.e2b.rest.shown import TEMPLATE, closed
from corral.facades.e2b.tokens import Tokens
from corral.schema.code import CodeContext, CodeContextCreate, CodeRun
from corral.schema.file import Mkdir

__all__ = ["IMAGE", "PORT", "SIZE", "TEMPLATE", "WARM", "Interpreter"]

PORT = 49999
SIZE = {"cpu": 2, "memory": 1024}
"""Of the sandboxes that this protocol makes of it: its clients can't say."""
_DEFAULTS = ("python", "javascript")
"""Languages whose default contexts the clients expect to find."""
_HOME = "/home/user"
_KEEP_ALIVE = 5.0
"""Seconds without a line after which one is sent that says nothing, as E2B does."""
_BODY = 4 << 20
_ALIASES = {"js": "javascript", "ts": "typescript", "py": "python", "python3": "python", "sh": "bash"}
_NAMES = {
    "text/plain": "text",
    "text/html": "html",
    "text/markdown": "markdown",
    "image/svg+xml": "svg",
    "image/png": "png",
    "image/jpeg": "jpeg",
    "application/pdf": "pdf",
    "text/latex": "latex",
    "application/json": "json",
    "application/javascript": "javascript",
    "application/vnd.corral.data+json": "data",
    "application/vnd.corral.chart+json": "chart",
}


class _Execute(BaseModel):
    model_config = ConfigDict(extra="ignore")

    code: str
    context_id: str | None = None
    language: str | None = None
    env_vars: dict[str, str] | None = Field(None)


class _Create(BaseModel):
    model_config = ConfigDict(extra="ignore")

    language: str | None = None
    cwd: str | None = None


class Interpreter:
    """One server's. `answer` is what is asked of the port of a running sandbox."""

    def __init__(self, services: Services, tokens: Tokens) -> None:
        self._services = services
        self._tokens = tokens

    async def answer(self, request: Request, record: Record) -> Response:
        """Errors are sentences, as the clients show them."""
        if (refused := await self._admit(request, record)) is not None:
            return refused
        try:
            return await self._answer(request, record)
        except ValidationError as error:
            return _text(422, str(errors.invalid(error)))
        except NotFound as error:
            return _text(404, str(error))
        except Exception as error:
            known = errors.translate(error)
            self._services.meter.error(known.code)
            return _text({410: 502, 422: 400}.get(known.status, known.status), str(known))

    async def _admit(self, request: Request, record: Record) -> Response | None:
        """A refusal, unless the request may have what it asks for.

        E2B's clients show their token when they execute code, but not when they ask about contexts: for that it is enough that the sandbox was made through this
        protocol (and, where its ports are closed, the token of those). What was made otherwise is opened by its token alone.
        """
        if self._tokens.matches(request.headers.get("x-access-token"), "envd", record.id):
            return None
        if closed(record):
            token = await self._services.previews.token(record.project, record.id)
            if not hmac.compare_digest(request.headers.get("e2b-traffic-access-token", "").encode(), token.encode()):
                return _text(403, "the sandbox's ports are closed: E2B-Traffic-Access-Token is missing or wrong")
        needs_token = record.facade.get("secure", True) and (request.url.path == "/execute" or "secure" not in record.facade)
        return _text(401, "the sandbox's access token (X-Access-Token) is missing or wrong") if needs_token else None

    async def _answer(self, request: Request, record: Record) -> Response:
        code = self._services.code
        match request.method, [part for part in request.url.path.split("/") if part]:
            case ("GET", ["health"]):
                return _text(200, "OK")
            case ("POST", ["execute"]):
                return await self._execute(_Execute.model_validate_json(await read(request, limit=_BODY)), record)
            case ("GET", ["contexts"]):
                return _json(200, [_shown(context) for context in await self._contexts(record)])
            case ("POST", ["contexts"]):
                wanted = _Create.model_validate_json(await read(request, limit=_BODY) or b"{}")
                cwd = None if wanted.cwd is None else await self._directory(record, wanted.cwd)
                return _json(200, _shown(await code.create(record.id, CodeContextCreate(language=_language(wanted.language) or "python", cwd=cwd))))
            case ("POST", ["contexts", id, "restart"]):
                await code.restart(record.id, id)
                return Response(status_code=204)
            case ("DELETE", ["contexts", id]):
                await code.remove(record.id, id)
                return Response(status_code=204)
            case (_, ["health" | "execute" | "contexts"] | ["contexts", _] | ["contexts", _, "restart"]):
                return _text(405, "Method Not Allowed")
            case _:
                return _text(404, "Not Found")

    async def _directory(self, record: Record, cwd: str) -> str:
        """Where a context is to work. The clients may name a directory that is not there: it is made."""
        path = posixpath.normpath(posixpath.join(record.workdir or _HOME, cwd))
        with suppress(CorralError):  # what is wrong with it is said when the context is started there
            await self._services.node.files(record.id).mkdir(Mkdir.model_validate({"path": path, "user": record.user}))
        return path

    async def _contexts(self, record: Record) -> list[CodeContext]:
        """The default ones first, which are made if they are not there."""
        code = self._services.code
        await asyncio.gather(*(code.default(record.id, language) for language in _DEFAULTS))
        return sorted(code.list(record.id), key=lambda context: not context.default)

    async def _execute(self, wanted: _Execute, record: Record) -> Response:
        if wanted.context_id and wanted.language:
            return _text(400, "Only one of context_id or language can be provided")
        run = CodeRun(code=wanted.code, context=wanted.context_id or None, language=_language(wanted.language), env=wanted.env_vars or {}, timeout=None)
        execution = await self._services.code.execute(record.id, run)
        self._services.meter.executions.inc()
        return ByteStream(_said(execution), self._services.streams, media_type="application/x-ndjson", on_hang_up=execution.stop)


def _language(given: str | None) -> str | None:
    return None if not given else _ALIASES.get(given.lower(), given.lower())


async def _said(execution: Execution) -> AsyncGenerator[bytes, None]:
    """Its lines. Ends without an end when the sandbox does, which is how the clients know."""
    loop = asyncio.get_running_loop()
    async with aclosing(execution.events()) as events:
        coming = loop.create_task(anext(events, None))
        try:
            while True:
                done, _ = await asyncio.wait((coming,), timeout=_KEEP_ALIVE)
                if not done:
                    yield _line({"type": "keepalive"})
                    continue
                if (item := coming.result()) is None:
                    return
                for said in _words(item[1]):
                    yield _line(said)
                coming = loop.create_task(anext(events, None))
        finally:
            coming.cancel()
            await asyncio.wait((coming,))


def _words(line: Line | Gap) -> list[dict[str, Any]]:
    match line:
        case lines.Stdout():
            return [{"type": "stdout", "text": line.text, "timestamp": line.at}]
        case lines.Stderr():
            return [{"type": "stderr", "text": line.text, "timestamp": line.at}]
        case lines.Result():
            return [_result(line)]
        case lines.Error():
            return [{"type": "error", "name": line.name, "value": line.value, "traceback": "\n".join(line.traceback)}]
        case lines.Count():
            return [{"type": "number_of_executions", "execution_count": line.count}]
        case Gap():
            return [{"type": "stderr", "text": f"[{line.bytes} bytes of output are gone: they came faster than they were read]\n", "timestamp": 0}]
        case lines.End():
            return [{"type": "unexpected_end_of_execution" if line.status in ("died", "restarted", "refused") else "end_of_execution"}]
        case _:
            return []


def _result(line: lines.Result) -> dict[str, Any]:
    shown: dict[str, Any] = {"type": "result", "is_main_result": line.main}
    extra: dict[str, Any] = {}
    for kind, raw in line.data.items():
        value = lines.value(raw)
        if (name := _NAMES.get(kind)) is None:
            extra[kind] = value
        elif name == "text" and isinstance(value, str) and len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
            shown[name] = value[1:-1]
        else:
            shown[name] = value
    for kind, size in line.omitted.items():
        extra[kind] = f"[left out: {size} characters]"
    return {**shown, "extra": extra}


def _shown(context: CodeContext) -> dict[str, str]:
    return {"id": context.id, "language": context.language, "cwd": context.cwd or "/"}


def _line(said: dict[str, Any]) -> bytes:
    return json.dumps(said).encode() + b"\n"


def _json(status: int, value: object) -> Response:
    return Response(json.dumps(value), status, media_type="application/json")


def _text(status: int, text: str) -> Response:
    return Response(text, status, media_type="text/plain")
