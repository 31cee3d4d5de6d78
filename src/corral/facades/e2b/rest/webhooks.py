"""/events/webhooks of E2B: Corral's own webhooks, which tell in E2B's form, signed as E2B does."""

from __future__ import annotations

import base64
import hashlib
import json
import uuid
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError
from starlette.responses import Response

from corral.api import errors
from corral.control.event_webhooks import Hook
from corral.control.events import EventLog
from corral.control.record import Record
from corral.control.roles import Permission
from corral.control.webhooks import Headers
from corral.errors import NotFound
from corral.facades.e2b.body import Body
from corral.facades.e2b.refusal import Refused
from corral.facades.e2b.rest import events
from corral.facades.e2b.rest.call import Call, told
from corral.schema.observe import Event
from corral.schema.webhook import EventWebhookCreate, EventWebhookUpdate, LifeKind

DIALECT = "e2b"

M = TypeVar("M", EventWebhookCreate, EventWebhookUpdate)


class ChangedWebhook(Body):
    """PATCH /events/webhooks/{id}. What is left out stays."""

    model_config = ConfigDict(hide_input_in_errors=True)

    name: str | None = None
    url: str | None = None
    enabled: bool | None = None
    events: list[str] | None = None
    signature_secret: SecretStr | None = None


class NewWebhook(Body):
    """POST /events/webhooks."""

    model_config = ConfigDict(hide_input_in_errors=True)

    name: str
    url: str
    enabled: bool = True
    events: list[str]
    signature_secret: SecretStr


async def create(call: Call) -> Response:
    """It is told of what happens from now on."""
    call.actor.require(Permission.USE)
    native = _native(EventWebhookCreate, await call.body(NewWebhook))
    made = await call.services.event_webhooks.create(call.actor, native, dialect=DIALECT)
    return told(_shown(call.services.event_webhooks.get(call.actor.project, made.id)), 201)


async def listing(call: Call) -> Response:
    """The oldest first."""
    call.actor.require(Permission.LOOK)
    return told([_shown(hook) for hook in call.services.event_webhooks.all(call.actor.project) if hook.dialect == DIALECT])


async def get(call: Call) -> Response:
    call.actor.require(Permission.LOOK)
    return told(_shown(_found(call)))


async def update(call: Call) -> Response:
    """Change what is given."""
    call.actor.require(Permission.USE)
    native = _native(EventWebhookUpdate, await call.body(ChangedWebhook))
    await call.services.event_webhooks.update(call.actor, _found(call).id, native)
    return told(_shown(_found(call)))


async def delete(call: Call) -> Response:
    call.actor.require(Permission.USE)
    await call.services.event_webhooks.remove(call.actor, _found(call).id)
    return Response(status_code=200)


def _found(call: Call) -> Hook:
    try:
        hook = call.services.event_webhooks.get(call.actor.project, call.part("webhook"))
    except NotFound:
        hook = None
    if hook is None or hook.dialect != DIALECT:
        raise Refused(404, f"webhook {call.part('webhook')[:80]} not found")
    return hook


def _native(model: type[M], wanted: BaseModel) -> M:
    """The same, in Corral's words. Raises `Refused`."""
    given = {name: getattr(wanted, name) for name in wanted.model_fields_set}
    if "events" in given:
        types = events.types(given.pop("events") or (), "events")
        given["kinds"] = [kind for kind, type in events.TYPES.items() if type in types]
    if "signature_secret" in given:
        given["secret"] = given.pop("signature_secret")
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise Refused(400, errors.invalid(error, show=False).message) from None


def _shown(hook: Hook) -> dict[str, Any]:
    types: dict[LifeKind, str] = events.TYPES
    return {
        "id": hook.id,
        "teamId": hook.project,
        "name": hook.name,
        "createdAt": hook.show().created_at.isoformat().replace("+00:00", "Z"),
        "enabled": hook.enabled,
        "url": hook.url,
        "events": [*dict.fromkeys(type for kind, type in types.items() if kind in hook.kinds)],
    }


class Telling:
    """Implements `control.event_webhooks.Dialect`."""

    def __init__(self, log: EventLog) -> None:
        self._log = log

    async def body(self, event: Event, record: Record) -> bytes | None:
        """As GET /events/sandboxes has it; None for a start that is a part of the creation."""
        past = await events.history(self._log, event.project, record.id)
        found = next((one for one in events.lives(past) if one["id"] == events.id_of(event)), None)
        return None if found is None else json.dumps(found).encode()

    def headers(self, hook: Hook, secret: bytes, event: Event, body: bytes) -> Headers:  # noqa: ARG002 - it says nothing of the event
        """The signature is the SHA-256 of the secret and the body, in base64 as in URLs; it tells no time. An event that is told again has the same `id`."""
        signature = base64.urlsafe_b64encode(hashlib.sha256(secret + body).digest()).rstrip(b"=").decode()
        return [
            ("Content-Type", "application/json"),
            ("User-Agent", "corral"),
            ("e2b-webhook-id", hook.id),
            ("e2b-delivery-id", str(uuid.uuid4())),
            ("e2b-signature-version", "v1"),
            ("e2b-signature", signature),
        ]
