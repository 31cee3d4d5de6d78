"""Errors as answers: one form for all, `{"error": {"code", "message", "hint", "details"}}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import structlog
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from corral.errors import CorralError, InternalError, InvalidArgument, NotFound, RequestError, Unauthenticated
from corral.schema.error import ErrorBody, ErrorInfo

JSON = "application/json"

log = structlog.get_logger(__name__)


class MethodNotAllowed(RequestError):
    """405: the path is there, and is not asked for like this."""

    code = "method_not_allowed"
    status = 405


class RangeNotSatisfiable(RequestError):
    """416: the part that was asked for begins behind the end."""

    code = "range_not_satisfiable"
    status = 416


def body(error: CorralError) -> bytes:
    """The error as it is sent."""
    return ErrorBody(error=info(error)).model_dump_json().encode()


def info(error: CorralError) -> ErrorInfo:
    """The error within an answer that tells of several things."""
    return ErrorInfo(code=error.code, message=error.message, hint=error.hint, details=error.details)


def answer(error: CorralError, headers: Mapping[str, str] | None = None) -> Response:
    headers = {**(headers or {})}
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    if error.status == 503:
        headers["Retry-After"] = "1"
    return Response(body(error), error.status, headers, JSON)


def translate(error: Exception) -> CorralError:
    """Any exception of an endpoint in Corral's words."""
    match error:
        case CorralError():
            if error.status == 500:
                log.error("request_failed", exc_info=error)
            return error
        case ValidationError():
            return invalid(error)
        case HTTPException(status_code=404):
            return NotFound("there is nothing at this path", hint="/openapi.json lists what there is")
        case HTTPException(status_code=405):
            allowed = (error.headers or {}).get("Allow")
            return MethodNotAllowed("this path is not asked for with this method", hint=allowed and f"use {allowed}")
        case HTTPException():
            return InvalidArgument(str(error.detail))
        case _:
            log.error("request_failed", exc_info=error)
            return InternalError(f"the server failed: {type(error).__name__}", hint="its log says more; please report it")


async def handle(request: Request, error: Exception) -> Response:
    """The answer to a request that failed, counted."""
    if isinstance(error, ClientDisconnect):
        return Response(status_code=499)  # nobody is there to read it
    headers = error.headers if isinstance(error, HTTPException) else None
    known = translate(error)
    request.app.state.services.meter.error(known.code)
    return answer(known, headers)


def invalid(error: ValidationError, *, show: bool = True) -> InvalidArgument:
    """The first thing that is wrong, in a sentence that names the field, the value (if `show`) and what is allowed; `details.errors` has all."""
    found = [_sentence(cast("Mapping[str, Any]", one), show=show) for one in error.errors(include_url=False)]
    field, sentence, hint = found[0]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    errors = [{"field": field, "message": sentence} for field, sentence, _ in found[:100]]
    return InvalidArgument(sentence + more, hint=hint, details={"field": field, "errors": errors})


def _sentence(one: Mapping[str, Any], *, show: bool) -> tuple[str, str, str | None]:
    field = ".".join(str(part) for part in one["loc"] if not str(part).startswith(("function-", "constrained-")))
    value, context = _shown(one.get("input")) if show else "what was given", one.get("ctx", {})
    what, hint = _wrong(one["type"], value, context, str(one["msg"]))
    return field, f"{field}: {what}" if field else what, hint


def _wrong(kind: str, value: str, limits: Mapping[str, Any], message: str) -> tuple[str, str | None]:
    match kind:
        case "greater_than":
            return f"{value} is not more than {limits['gt']}", f"give a number greater than {limits['gt']}"
        case "greater_than_equal":
            return f"{value} is less than {limits['ge']}, the least allowed", f"give {limits['ge']} or more"
        case "less_than_equal":
            return f"{value} is more than {limits['le']}, the most allowed", f"give {limits['le']} or less"
        case "int_parsing" | "int_type" | "int_from_float" | "int_parsing_size":
            return f"{value} is not a whole number", "give a whole number"
        case "float_parsing" | "float_type" | "finite_number":
            return f"{value} is not a number", "give a finite number"
        case "bool_parsing" | "bool_type":
            return f"{value} is neither true nor false", "give true or false"
        case "string_type":
            return f"{value} is not text", "give text in quotes"
        case "string_too_short" | "too_short":
            return f"{value} is too short", f"it needs at least {limits['min_length']}"
        case "string_too_long" | "too_long":
            length = limits.get("actual_length")
            return f"it is too long{'' if length is None else f' ({length})'}", f"at most {limits['max_length']} are allowed"
        case "string_pattern_mismatch":
            return f"{value} has characters, or an order of them, that are not allowed here", f"it must match {limits['pattern']}"
        case "missing":
            return "it is missing", "this field is required"
        case "extra_forbidden":
            return "there is no such field", "check its spelling; unknown fields are refused, not ignored"
        case "literal_error" | "enum":
            return f"{value} is not one of {limits['expected']}", None
        case "dict_type" | "model_type" | "model_attributes_type":
            return f"{value} is not an object", 'give an object, such as {"name": "value"}'
        case "list_type":
            return f"{value} is not a list", "give a list"
        case "json_invalid":
            return f"the request's body is not JSON: {limits['error']}", "send a JSON object"
        case "value_error":
            return message.removeprefix("Value error, "), None
        case _:
            return f"{value}: {message}", None


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
