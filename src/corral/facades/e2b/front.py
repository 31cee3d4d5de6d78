"""Which requests are of E2B's clients, and what becomes of them. Everything else goes on to Corral's own API.

A sandbox is meant by the name of the host (`{port}-{sandbox}.anything`), by the headers E2b-Sandbox-Id and E2b-Sandbox-Port, or by the signature of a file's address.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from urllib.parse import unquote

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from corral.api.services import Services
from corral.control.record import Record
from corral.control.roles import Actor
from corral.errors import SandboxEnded, Unauthenticated
from corral.facades.e2b import cors, envd, interpreter
from corral.facades.e2b.envd.desk import Desk, not_found, port_closed
from corral.facades.e2b.ports import Ports
from corral.facades.e2b.refusal import Refused, answer, body
from corral.facades.e2b.rest.builds import Builds
from corral.facades.e2b.rest.call import SLASH, Call, Endpoint
from corral.facades.e2b.rest.routes import ROUTES, Routes, building, unlocked
from corral.facades.e2b.rest.webhooks import DIALECT, Telling
from corral.facades.e2b.tokens import Tokens
from corral.preview.doors import Door
from corral.schema.account import Role
from corral.schema.sandbox import State

_HOST = re.compile(r"(\d{1,5})-(sb-[a-z2-7]{16})\.")
_PATHS = (
    *("/sandboxes", "/v2/", "/v3/", "/templates", "/snapshots", "/volumes", "/secrets", "/volumecontent/", "/events/"),
    # What is not there is refused in E2B's words.
    *("/default-templates", "/teams", "/api-keys", "/access-tokens", "/nodes", "/admin/"),
)
_NOBODY = Actor("", "", Role.READER)
"""Who has nothing but the address."""
_RUNNING = frozenset({State.RUNNING, State.FROZEN})

DOOR = Door(
    "e2b",
    ports=frozenset({envd.PORT, interpreter.PORT}),
    sandbox_header="e2b-sandbox-id",
    port_header="e2b-sandbox-port",
    token_header="e2b-traffic-access-token",  # noqa: S106 (a name)
)
"""What comes here of the requests to where previews are: the ports answered outside the sandboxes, and E2B's names for what previews know by others."""

PortHandler = Callable[[Request, Record], Awaitable[Response]]
"""Answers what is asked of one port of a running sandbox, in place of the sandbox. Raises `Refused`."""


class E2B:
    """ASGI: E2B's protocol before `native`."""

    def __init__(self, native: ASGIApp, services: Services, tokens: Tokens) -> None:
        self._native = native
        self._services = services
        self._tokens = tokens
        self._desk = Desk(services, tokens)
        self._ports = services.previews.guise = Ports(services)
        self.ports: dict[int, PortHandler] = {envd.PORT: self._desk.answer, interpreter.PORT: interpreter.Interpreter(services, tokens).answer}
        """By port, what is answered outside the sandbox."""
        services.event_webhooks.dialects[DIALECT] = Telling(services.events)
        builds = Builds()
        routes = [*self._routes((*ROUTES, *building(builds)), self._actor), *self._routes(unlocked(builds), lambda _: _NOBODY)]
        self._router = Router(routes=routes, redirect_slashes=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._native(scope, receive, send)
            return
        aimed = self._aim(scope)
        if aimed is None and scope["path"] == "/health":
            await Response(status_code=204)(scope, receive, send)
            return
        ours = aimed is not None or scope["path"].startswith(_PATHS)
        if (before := cors.asked_before(scope, ours=ours)) is not None:
            await before(scope, receive, send)
            return
        if not ours:
            await self._native(scope, receive, send)
            return
        send = cors.told(scope, send)
        if aimed is not None:
            await (await self._inside(Request(scope, receive), *aimed))(scope, receive, send)
        else:
            await self._control(scope, receive, send)

    def close(self) -> None:
        self._desk.close()

    # ── sandboxes ──

    def _aim(self, scope: Scope) -> tuple[str, int] | None:
        """The sandbox and port that a request is for, if for one."""
        headers = Headers(scope=scope)
        if (named := _HOST.match(headers.get("host", ""))) is not None:
            return named[2], int(named[1])
        if (id := headers.get("e2b-sandbox-id")) is not None:
            port = headers.get("e2b-sandbox-port", "")
            return id, int(port) if port.isdecimal() and len(port) < 6 else envd.PORT
        if scope["path"] == "/files" and b"signature=" in scope["query_string"]:
            return self._signed_for(Request(scope)), envd.PORT
        return None

    def _signed_for(self, request: Request) -> str:
        """The sandbox whose token signed this address: where all have one address, it does not say. "": nobody's."""
        given = request.query_params.get("signature", "")
        return next((record.id for record in self._services.sandboxes.records() if self._desk.signed(request, record.id, given)), "")

    async def _inside(self, request: Request, id: str, port: int) -> Response:
        if not id:
            return body(401, "invalid signature")
        living = self._services.sandboxes.ledger.registry.get(id)
        if living is None or living.reserved:
            return not_found(id)
        try:
            if (living.pausing or living.record.state is State.PAUSED) and self._ports.wakes(living.record):
                with suppress(SandboxEnded):
                    await self._ports.wake(living)
            if living.record.state not in _RUNNING:
                return not_found(id)
            handler = self.ports.get(port)
            if handler is None:
                return port_closed(id, port)
            return await handler(request, living.record)
        except Exception as error:
            return answer(error, self._services.meter)

    # ── control ──

    async def _control(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["path"] = whole(scope)
        for route in self._router.routes:
            match, child = route.matches(scope)
            if match is Match.FULL:
                scope.update(child)
                await route.handle(scope, receive, send)
                return
        await body(404, f"there is no {scope['method']} {scope['path'][:200]} here; docs/from-e2b.md says what there is")(scope, receive, send)

    def _routes(self, routes: Routes, who: Callable[[Request], Actor]) -> list[Route]:
        return [Route(path, self._endpoint(endpoint, who), methods=[method]) for method, path, endpoint in routes]

    def _endpoint(self, endpoint: Endpoint, who: Callable[[Request], Actor]) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            try:
                return await endpoint(Call(request, self._services, self._tokens, who(request)))
            except Exception as error:
                return answer(error, self._services.meter)

        return handle

    def _actor(self, request: Request) -> Actor:
        given = request.headers.get("x-api-key")
        if given is None:
            scheme, _, credential = request.headers.get("authorization", "").partition(" ")
            given = credential.strip() if scheme.lower() == "bearer" else None
        if not given:
            raise Refused(401, "no API key was given: pass it as X-API-Key (E2B_API_KEY)")
        try:
            return self._services.accounts.authenticate(native_key(given))
        except Unauthenticated:
            raise Refused(401, "this API key is unknown or revoked; `e2b_` and the digits of a living key of this server make one") from None


def whole(scope: Scope) -> str:
    """The path, in which a slash that was packed (`project%2Fname`) still is: it belongs to a name."""
    return "/".join(unquote(part).replace("/", SLASH) for part in scope["raw_path"].decode("latin-1").split("/"))


def native_key(given: str) -> str:
    """E2B's clients want keys that begin with `e2b_`: that is another spelling of the same key."""
    return "ck_" + given.removeprefix("e2b_") if given.startswith("e2b_") else given
