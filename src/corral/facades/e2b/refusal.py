"""Errors as E2B's clients expect them: `{"code", "message"}`, where `code` is the status of the answer."""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import Response

from corral.api import errors
from corral.api.meter import Meter
from corral.errors import CorralError

JSON = "application/json"


class Refused(Exception):
    """A request that is answered by this status and sentence. `more`: further fields of the body."""

    def __init__(self, status: int, message: str, **more: Any) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.more = more


def sentence(error: CorralError) -> str:
    """What went wrong, and what to do."""
    return f"{error.message}; {error.hint}" if error.hint else error.message


def compact(value: object) -> str:
    """JSON as E2B writes it, without spaces: there are those who compare texts."""
    return json.dumps(value, separators=(",", ":"))


def body(status: int, message: str, **more: Any) -> Response:
    return Response(compact({**more, "message": message, "code": status} if more else {"code": status, "message": message}), status, media_type=JSON)


def status_of(error: CorralError) -> int:
    """410 and 422 are unknown to the clients: an ended sandbox is one that is not there, what is not supported is a wrong request."""
    return {410: 404, 422: 400}.get(error.status, error.status)


def answer(error: Exception, meter: Meter) -> Response:
    """Any exception of an endpoint as E2B would have said it."""
    match error:
        case Refused():
            return body(error.status, error.message, **error.more)
        case ClientDisconnect():
            return Response(status_code=499)
        case _:
            known = errors.translate(error)
            meter.error(known.code)
            answer = body(status_of(known), sentence(known))
            if known.status == 503:
                answer.headers["Retry-After"] = "1"
            return answer
