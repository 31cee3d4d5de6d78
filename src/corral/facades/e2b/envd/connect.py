"""The Connect protocol with JSON: single answers, streams of envelopes, and its words for errors (connectrpc.com/docs/protocol)."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from enum import StrEnum
from typing import Any, cast

import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from corral import errors as corral_errors
from corral.api import errors
from corral.api.body import read
from corral.api.stream import ByteStream, Streams, finishing
from corral.errors import CorralError
from corral.facades.e2b.inside import UnknownUser
from corral.facades.e2b.refusal import JSON, Refused, compact, sentence

LIMIT = 4 << 20
"""Bytes of one message. Standard input travels in messages."""
STREAM = "application/connect+json"
PING = 90.0
"""Seconds between signs of life in a stream, unless the client asks for others."""
_ENDS, _COMPRESSED = 2, 1

Message = dict[str, Any]
log = structlog.get_logger(__name__)


class Code(StrEnum):
    """Connect's words, those that are used here."""

    CANCELED = "canceled"
    INVALID_ARGUMENT = "invalid_argument"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    NOT_FOUND = "not_found"
    ALREADY_EXISTS = "already_exists"
    PERMISSION_DENIED = "permission_denied"
    RESOURCE_EXHAUSTED = "resource_exhausted"
    FAILED_PRECONDITION = "failed_precondition"
    UNIMPLEMENTED = "unimplemented"
    INTERNAL = "internal"
    UNAVAILABLE = "unavailable"
    UNAUTHENTICATED = "unauthenticated"


_STATUS = {
    Code.CANCELED: 499,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.UNAUTHENTICATED: 401,
}
_BY_STATUS = {400: Code.INVALID_ARGUMENT, 401: Code.UNAUTHENTICATED, 404: Code.NOT_FOUND, 409: Code.ALREADY_EXISTS, 501: Code.UNIMPLEMENTED}


class RpcError(Exception):
    """A call that fails."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def show(self) -> Message:
        return {"code": self.code.value, "message": self.message}


def translate(error: Exception) -> RpcError:
    """Any exception in Connect's words."""
    match error:
        case RpcError():
            return error
        case UnknownUser():
            return RpcError(Code.UNAUTHENTICATED, str(error))
        case Refused():
            return RpcError(_BY_STATUS.get(error.status, Code.INTERNAL), error.message)
        case _:
            known = errors.translate(error)
            return RpcError(_code(known), sentence(known))


def _code(error: CorralError) -> Code:
    match error:
        case corral_errors.FileExists():
            return Code.ALREADY_EXISTS
        case corral_errors.SandboxEnded():
            return Code.UNAVAILABLE
        case corral_errors.NotFound():
            return Code.NOT_FOUND
        case corral_errors.Forbidden() | corral_errors.AccessDenied():
            return Code.PERMISSION_DENIED
        case corral_errors.Unauthenticated():
            return Code.UNAUTHENTICATED
        case corral_errors.QuotaExceeded() | corral_errors.DiskFull() | corral_errors.TooLarge():
            return Code.RESOURCE_EXHAUSTED
        case corral_errors.InvalidState():
            return Code.FAILED_PRECONDITION
        case corral_errors.Unavailable():
            return Code.UNAVAILABLE
        case corral_errors.DeadlineExceeded():
            return Code.DEADLINE_EXCEEDED
        case corral_errors.RequestError():
            return Code.INVALID_ARGUMENT
        case _:
            return Code.INTERNAL


def failure(error: Exception) -> Response:
    """The answer to a single call that fails."""
    if isinstance(error, ClientDisconnect):
        return Response(status_code=499)
    told = translate(error)
    return Response(compact(told.show()), _STATUS[told.code], media_type=JSON)


async def unary(request: Request, call: Callable[[Message], Awaitable[Message]]) -> Response:
    """One message, one answer."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if kind != JSON:
        return Response(f"{kind or 'no content type'}: only {JSON} is spoken here", 415, media_type="text/plain")
    try:
        raw = await read(request, limit=LIMIT)
        if request.headers.get("content-encoding", "identity") == "gzip":
            raw = _unzip(raw)
        answer = await call(_message(raw))
    except Exception as error:
        return failure(error)
    return Response(compact(answer), media_type=JSON)


async def streaming(
    request: Request, streams: Streams, call: Callable[[Message], AsyncGenerator[Message, None]], *, sign: Message, timeout: float | None
) -> Response:
    """One message, a stream of answers. `sign` is the message that only says that the stream lives; the stream ends after `timeout` seconds."""
    refused = not_a_stream(request)
    if refused is not None:
        return refused
    try:
        messages = [message async for message in requests(request)]
        if len(messages) != 1:
            raise RpcError(Code.INVALID_ARGUMENT, f"this call takes one message, not {len(messages)}")
    except Exception as error:
        return ByteStream(_failed(error), streams, media_type=STREAM)
    return ByteStream(_told(call(messages[0]), sign=sign, every=ping(request), timeout=timeout), streams, media_type=STREAM)


async def collecting(request: Request, take: Callable[[Message], Awaitable[None]]) -> Response:
    """A stream of messages, an empty answer when the last one was taken."""
    refused = not_a_stream(request)
    if refused is not None:
        return refused
    try:
        async for message in requests(request):
            await take(message)
    except ClientDisconnect:
        return Response(status_code=499)
    except Exception as error:
        return Response(trailer(translate(error)), media_type=STREAM)
    return Response(envelope({}) + trailer(), media_type=STREAM)


def not_a_stream(request: Request) -> Response | None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    return None if kind == STREAM else Response(f"{kind or 'no content type'}: only {STREAM} is spoken here", 415, media_type="text/plain")


async def requests(request: Request) -> AsyncIterator[Message]:
    """The messages of a request's stream. Raises `RpcError` for what is none."""
    zipped = request.headers.get("connect-content-encoding", "identity") == "gzip"
    buffer = bytearray()
    async for piece in request.stream():
        buffer += piece
        while len(buffer) >= 5:
            size = int.from_bytes(buffer[1:5], "big")
            if size > LIMIT:
                raise RpcError(Code.RESOURCE_EXHAUSTED, f"a message of {size} bytes is larger than {LIMIT}")
            if len(buffer) < 5 + size:
                break
            flags, raw = buffer[0], bytes(buffer[5 : 5 + size])
            del buffer[: 5 + size]
            if flags & _ENDS:
                return
            if flags & _COMPRESSED:
                if not zipped:
                    raise RpcError(Code.INTERNAL, "a compressed message, and no Connect-Content-Encoding")
                raw = _unzip(raw)
            yield _message(raw)
    if buffer:
        raise RpcError(Code.INVALID_ARGUMENT, "the stream ends in the middle of a message")


def envelope(message: Message, flags: int = 0) -> bytes:
    raw = compact(message).encode()
    return bytes((flags,)) + len(raw).to_bytes(4, "big") + raw


def trailer(error: RpcError | None = None) -> bytes:
    """The last envelope of every stream."""
    return envelope({} if error is None else {"error": error.show()}, _ENDS)


def deadline(request: Request) -> float | None:
    """Seconds the client gives the call; None: as long as it takes."""
    given = request.headers.get("connect-timeout-ms")
    if given is None or not given.isdecimal() or len(given) > 10:
        return None
    return int(given) / 1000 or None


def ping(request: Request) -> float:
    """Seconds after which a silent stream says that it lives."""
    given = request.headers.get("keepalive-ping-interval", "")
    return float(given) if given.isdecimal() and 0 < int(given) <= 3600 else PING


async def _told(messages: AsyncGenerator[Message, None], *, sign: Message, every: float, timeout: float | None) -> AsyncGenerator[bytes, None]:
    """The envelopes of a stream: its messages, `sign` whenever there was none for `every` seconds, and how it ended."""
    loop = asyncio.get_running_loop()
    end = None if timeout is None else loop.time() + timeout
    async with finishing(messages) as source:
        waiting = loop.create_task(_next(source))
        try:
            while True:
                left = every if end is None else min(every, end - loop.time())
                done, _ = await asyncio.wait((waiting,), timeout=max(0.0, left))
                if not done and left < every:
                    yield trailer(RpcError(Code.DEADLINE_EXCEEDED, "the deadline of the call has passed"))
                    return
                if not done:
                    yield envelope(sign)
                    continue
                message = waiting.result()
                if message is None:
                    yield trailer()
                    return
                yield envelope(message)
                waiting = loop.create_task(_next(source))
        except corral_errors.SandboxEnded:
            # The stream breaks off, as if it had come out of the sandbox: then the clients look whether that still lives.
            raise
        except Exception as error:
            yield trailer(translate(error))
        finally:
            waiting.cancel()
            await asyncio.wait((waiting,))


async def _next(messages: AsyncIterator[Message]) -> Message | None:
    return await anext(messages, None)


async def _failed(error: Exception) -> AsyncGenerator[bytes, None]:
    yield trailer(translate(error))


def _message(raw: bytes) -> Message:
    try:
        message = json.loads(raw or b"{}")
    except (ValueError, RecursionError):
        raise RpcError(Code.INVALID_ARGUMENT, "the message is not JSON") from None
    if not isinstance(message, dict):
        raise RpcError(Code.INVALID_ARGUMENT, "the message is not a JSON object")
    return cast("Message", message)


def _unzip(raw: bytes) -> bytes:
    try:
        unzip = zlib.decompressobj(wbits=31)
        out = unzip.decompress(raw, LIMIT)
    except zlib.error:
        raise RpcError(Code.INVALID_ARGUMENT, "the message is not gzip") from None
    if unzip.unconsumed_tail:
        raise RpcError(Code.RESOURCE_EXHAUSTED, f"a message is larger than {LIMIT} bytes")
    return out
