"""Who asks: the key of a request, before anything else is looked at. Pure ASGI, for HTTP and WebSocket alike."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from corral.api import errors
from corral.api.meter import Meter
from corral.control.accounts import Accounts
from corral.control.roles import Actor, acting_in
from corral.errors import CorralError, Unauthenticated

OPEN = frozenset({"/healthz", "/readyz", "/metrics", "/openapi.json"})
"""Paths that need no key: they tell nothing of anybody."""


class Authenticate:
    """Puts the actor into `scope["state"]`, or answers 401."""

    def __init__(self, app: ASGIApp, accounts: Accounts, meter: Meter) -> None:
        self._app = app
        self._accounts = accounts
        self._meter = meter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket") and scope["path"] not in OPEN:
            try:
                scope["state"]["actor"] = self._actor(scope)
            except CorralError as error:
                self._meter.error(error.code)
                await errors.answer(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _actor(self, scope: Scope) -> Actor:
        key, project = None, None
        for name, value in scope["headers"]:
            if name == b"authorization":
                scheme, _, credential = value.partition(b" ")
                key = credential.strip() if scheme.lower() == b"bearer" else None
            elif name == b"corral-project":
                project = value.decode("latin-1").strip()
        if not key:
            raise Unauthenticated("no API key was given", hint="pass it as `Authorization: Bearer ck_…`")
        actor = self._accounts.authenticate(key.decode("latin-1"))
        if project is None or project == actor.project:
            return actor
        actor = acting_in(actor, project)
        self._accounts.project(project)
        return actor
