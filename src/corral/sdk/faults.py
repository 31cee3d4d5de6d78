"""From the server's words to Python's exceptions and back: error bodies, requests that can't be built, answers that can't be read."""

from __future__ import annotations

import uuid
from typing import Any, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ValidationError

from corral.errors import BY_CODE, CommandFailed, CorralError, InternalError, InvalidArgument, RequestError, Unauthenticated, Unavailable
from corral.schema.error import ErrorBody, ErrorInfo
from corral.sdk.retry import Lost

M = TypeVar("M", bound=BaseModel)


def from_answer(status: int, body: bytes) -> CorralError:
    """The exception for an answer that is not a success."""
    try:
        info = ErrorBody.model_validate_json(body).error
    except ValidationError:
        text = body[:300].decode(errors="replace").strip()
        kind = Unavailable if status in (502, 503, 504) else RequestError if 400 <= status < 500 else InternalError
        return kind(f"the server answered {status}: {text or 'nothing'}", hint="is this the URL of a Corral server?")
    known = BY_CODE.get(info.code)
    if known is None or known.code == "command_failed":
        known = RequestError if 400 <= status < 500 else InternalError
        return known(f"{info.message} [{info.code}]", hint=info.hint, details=info.details)
    if known is Unauthenticated and info.hint is None:
        return known(info.message, hint="set CORRAL_API_KEY, or run `corral key create` where you have a key", details=info.details)
    return known(info.message, hint=info.hint, details=info.details)


def told(info: ErrorInfo | None) -> CorralError:
    """The exception for an error that is a part of an answer."""
    if info is None:
        return InternalError("the server's answer says neither what it made nor why not", hint="is the client as new as the server?")
    known = BY_CODE.get(info.code)
    if known is None or issubclass(known, CommandFailed):
        return InternalError(f"{info.message} [{info.code}]", hint=info.hint, details=info.details)
    return known(info.message, hint=info.hint, details=info.details)


def from_close(code: int, reason: str) -> CorralError:
    """The exception for the end of a WebSocket: 4000 + a status, and `code: message`, where the server had a reason; else the connection is lost."""
    word, colon, message = reason.partition(": ")
    known = BY_CODE.get(word)
    if code >= 4000 and colon and known is not None and not issubclass(known, (Unavailable, CommandFailed)):
        return known(message)
    return Lost(f"the server hung up ({code}{': ' if reason else ''}{reason})")


def build(model: type[M], **fields: Any) -> M:
    """A request, or `InvalidArgument` that names the field in the caller's words."""
    try:
        return model(**fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidArgument(f"{where}: {first['msg']}" if where else str(first["msg"]), details={"field": where}) from None


def encode(request: BaseModel) -> bytes:
    """The body of a request: only what was set."""
    try:
        return request.model_dump_json(exclude_unset=True).encode()
    except (ValueError, UnicodeError) as error:  # lone surrogates: JSON can't carry bytes that are not UTF-8
        raise InvalidArgument(f"the request can't be written as JSON: {error}") from None


def decode(model: type[M], body: bytes) -> M:
    """An answer, or `InternalError` when the server speaks another language."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise InternalError(
            f"the server's answer is no {model.__name__}: {error.errors(include_url=False)[0]['msg']}", hint="is the client as new as the server?"
        ) from None


def new_key() -> str:
    """An idempotency key: the server answers the same request with the same key as it did the first time."""
    return uuid.uuid4().hex


def segment(text: str) -> str:
    """An id or a name as a part of a path; never empty, never more than one part."""
    if not text or text in (".", ".."):
        raise InvalidArgument(f"{text!r} is no id and no name")
    return quote(text, safe="")
