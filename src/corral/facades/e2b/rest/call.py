"""A request of the control plane on its way to an endpoint."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from corral.api import errors
from corral.api.body import read
from corral.api.services import Services
from corral.control.record import Record
from corral.control.roles import Actor
from corral.errors import NotFound, SandboxEnded
from corral.facades.e2b.body import Body
from corral.facades.e2b.refusal import JSON, Refused, compact
from corral.facades.e2b.rest.shown import access
from corral.facades.e2b.tokens import Tokens

PAGE = 100
SLASH = "%2F"
"""How a slash that is a part of a name comes here (`front.whole`)."""
_LIMIT = 4 << 20

B = TypeVar("B", bound=Body)
T = TypeVar("T")


@dataclass(frozen=True)
class Call:
    """`actor`: whose key it was."""

    request: Request
    services: Services
    tokens: Tokens
    actor: Actor

    @property
    def domain(self) -> str | None:
        """Below which each sandbox has a name; None for clients that came by it, and so know it, or reach it in a way of their own."""
        by_name = self.request.headers.get("host", "").startswith("api.")
        return None if by_name else self.services.previews.authority or None

    def part(self, name: str) -> str:
        """A part of the path."""
        return self.request.path_params[name].replace(SLASH, "/")

    def query(self, name: str) -> str | None:
        return self.request.query_params.get(name) or None

    def number(self, name: str, default: int, *, most: int) -> int:
        """A whole number of the query, from 0 to `most`. Raises `Refused`."""
        given = self.query(name)
        if given is None:
            return default
        if not given.isdecimal() or len(given) > 18 or int(given) > most:
            raise Refused(400, f"{name}: {given[:40]!r} is not a whole number from 0 to {most}")
        return int(given)

    def page(self, found: Iterable[T], key: Callable[[T], str]) -> tuple[list[T], dict[str, str]]:
        """As many as are asked for (`limit`, `nextToken`), in the order of their keys, and the header that leads to the next ones. Raises `Refused`."""
        limit, after = self.number("limit", PAGE, most=PAGE) or PAGE, self.query("nextToken")
        left = sorted((one for one in found if after is None or key(one) > after), key=key)
        return left[:limit], {"X-Next-Token": key(left[limit - 1])} if len(left) > limit else {}

    async def body(self, model: type[B]) -> B:
        """The request's JSON. Raises `Refused`."""
        raw = await read(self.request, limit=_LIMIT)
        self.request.scope["state"]["body"] = raw
        try:
            return model.model_validate_json(raw or b"{}")
        except ValidationError as error:
            told = errors.invalid(error)
            raise Refused(400, f"{told.message}; {told.hint}" if told.hint else told.message) from None

    async def sandbox(self, id: str | None = None) -> Record:
        """The living sandbox of the path. Raises `Refused`."""
        id = id or self.part("sandbox")
        living = self.services.sandboxes.ledger.find(self.actor.project, id)
        if living is None:
            raise missing(id)
        return living.record


async def shown_access(call: Call, record: Record) -> dict[str, Any]:
    """What a client needs to reach it."""
    return access(record, call.tokens, call.domain, await call.services.previews.token(record.project, record.id))


def missing(id: str) -> Refused:
    return Refused(404, f"Sandbox \"{id[:80]}\" doesn't exist or you don't have access to it")


async def living(id: str, doing: Awaitable[T]) -> T:
    """The result; a sandbox that has ended is one that is not there."""
    try:
        return await doing
    except (SandboxEnded, NotFound):
        raise missing(id) from None


def told(answer: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer in JSON."""
    return Response(compact(answer), status, headers, JSON)


Endpoint = Callable[[Call], Awaitable[Response]]
