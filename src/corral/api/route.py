"""How a request becomes a call of an endpoint. FastAPI reads the endpoints' signatures for OpenAPI; the calls are made here, since its own way costs half a millisecond each.

An endpoint takes, by annotation: `Services` and `Actor` (dependencies), `Request`, the parts of the path (str), a query (`Annotated[Model, Query()]`) and a body (a model).
It gives a model, or a response, or None for 204.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from fastapi import APIRouter, Depends
from fastapi.params import Query
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from corral.api import errors
from corral.api.body import read
from corral.api.services import Services as _Services
from corral.control.roles import Actor as _Actor
from corral.control.roles import Permission
from corral.errors import InvalidArgument
from corral.schema.error import ErrorBody

JSON_LIMIT = 4 << 20
"""Bytes of a request's JSON. What may be larger (files, standard input, trees) is not JSON."""
LARGE = 64 << 10
"""Bytes of JSON that take milliseconds to look at."""
JSON = "application/json"
_NO_BODY = (b"", b"{}")


def services(request: Request) -> _Services:
    return request.app.state.services


def actor(request: Request) -> _Actor:
    """Who asks; set by `auth.Authenticate`, which let nobody else through."""
    return request.scope["state"]["actor"]


Services = Annotated[_Services, Depends(services)]
Actor = Annotated[_Actor, Depends(actor)]


def raw_body(request: Request) -> bytes:
    """The bytes of the JSON that was taken as the endpoint's body."""
    return request.scope["state"]["body"]


Bind = Callable[[Request], Any]


class Direct(APIRoute):
    """A route that calls its endpoint directly."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        endpoint: Callable[..., Awaitable[Any]] = self.endpoint
        permission: Permission | None = getattr(endpoint, "permission", Permission.USE)
        binds, body = _plan(endpoint)
        takes_query = any(isinstance(extra, Query) for hint in get_type_hints(endpoint, include_extras=True).values() for extra in get_args(hint)[1:])
        takes_body = body is not None or _itself in binds.values()
        status = self.status_code or 200

        async def call(request: Request) -> Response:
            if permission is not None:
                actor(request).require(permission)
                if not takes_query and request.scope["query_string"]:
                    raise InvalidArgument("this request takes no parameters", hint="leave out what follows the question mark")
                if not takes_body and await read(request, limit=JSON_LIMIT) not in _NO_BODY:
                    raise InvalidArgument("this request takes no body", hint="send it without one")
            values = {name: bind(request) for name, bind in binds.items()}
            if body is not None:
                name, model = body
                raw = request.scope["state"]["body"] = await read(request, limit=JSON_LIMIT) or b"{}"
                # In a thread of its own when it is large: others have their turn meanwhile.
                values[name] = _validated(model, raw) if len(raw) < LARGE else await asyncio.to_thread(_validated, model, raw)
            result = await endpoint(**values)
            match result:
                case None:
                    return Response(status_code=204)
                case Response():
                    return result
                case _:
                    return Response(result.model_dump_json(), status, media_type=JSON)

        async def handle(request: Request) -> Response:
            try:
                return await call(request)
            except Exception as error:
                return await errors.handle(request, error)

        return handle


def _plan(endpoint: Callable[..., Any]) -> tuple[dict[str, Bind], tuple[str, type[BaseModel]] | None]:
    binds: dict[str, Bind] = {}
    body: tuple[str, type[BaseModel]] | None = None
    hints = get_type_hints(endpoint, include_extras=True)
    for name in inspect.signature(endpoint).parameters:
        hint = hints[name]
        kind, *extras = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        if kind is _Services:
            binds[name] = services
        elif kind is _Actor:
            binds[name] = actor
        elif kind is Request:
            binds[name] = _itself
        elif any(isinstance(extra, Query) for extra in extras):
            binds[name] = _query(kind)
        elif kind is str:
            binds[name] = _path(name)
        else:
            body = name, kind
    return binds, body


def _validated(model: type[BaseModel], raw: bytes) -> BaseModel:
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        if model.model_config.get("hide_input_in_errors"):
            raise errors.invalid(error, show=False) from None
        raise


def _itself(request: Request) -> Request:
    return request


def _path(name: str) -> Bind:
    return lambda request: request.path_params[name]


def _query(model: type[BaseModel]) -> Bind:
    lists = {name for name, field in model.model_fields.items() if get_origin(field.annotation) is list}

    def bind(request: Request) -> BaseModel:
        given = request.query_params
        return model.model_validate({name: given.getlist(name) if name in lists else given[name] for name in given})

    return bind


def may(permission: Permission | None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """What an endpoint asks of a key, if not `USE`. None: it is open to everybody."""

    def mark(endpoint: Callable[..., Any]) -> Callable[..., Any]:
        endpoint.permission = permission  # pyright: ignore[reportFunctionMemberAccess]
        return endpoint

    return mark


_MEANINGS = {
    400: "an argument is wrong",
    401: "no key, or one that is unknown or revoked",
    403: "the key's role does not allow it",
    404: "it does not exist, or belongs to another project",
    409: "it is in a state or place that does not allow it",
    410: "the sandbox has ended",
    413: "the request is too large",
    422: "it can't be honoured here",
    429: "a quota is used up",
    500: "Corral failed",
    503: "the server or node can't do it now",
    507: "the sandbox's disk is full",
}


_KEY = HTTPBearer(
    scheme_name="key",
    description="An API key, `ck_` and 40 hexadecimal digits. It belongs to a project; an admin's may act in another one, named by the header `Corral-Project`.",
)


def router(tag: str, *errors: int, key: bool = True) -> APIRouter:
    """A router of one resource, whose endpoints may answer with these errors besides the usual ones. `key`: they need one."""
    # 422 always: else FastAPI documents an error of its own, in another form.
    usual = {400, 401, 403, 404, 413, 422, 500, 503} if key else {422, 500, 503}
    responses: dict[int | str, dict[str, Any]] = {status: {"model": ErrorBody, "description": _MEANINGS[status]} for status in sorted(usual | set(errors))}
    # For the documentation: who asks was found out in `auth` before.
    return APIRouter(route_class=Direct, tags=[tag], responses=responses, dependencies=[Depends(_KEY)] if key else [])
