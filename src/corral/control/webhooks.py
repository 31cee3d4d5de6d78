"""Telling a project's own server of connections that wait for a decision: signed, tried again until the question is moot, and never in the way of anything else.

What is sent, here and of events (`control.event_webhooks`), is sent by `send`."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from corral.control.events import EventLog
from corral.control.ports import Deliver, KeyRing, WebhookRows
from corral.control.record import Record, moment
from corral.control.roles import Actor
from corral.errors import Forbidden, NotFound, Unavailable
from corral.schema.webhook import Webhook, WebhookSet

WAITS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds between tries, each once."""
AT_ONCE = 100
"""Deliveries of one project under way; of more, it is told nothing but by the event."""

Headers = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class _Hook:
    webhook: Webhook
    secret: bytes = field(repr=False)


class Webhooks:
    """Of all projects. `clock` in seconds since 1970."""

    def __init__(self, rows: WebhookRows, keys: KeyRing, deliver: Deliver, events: EventLog, clock: Callable[[], float]) -> None:
        self._rows = rows
        self._keys = keys
        self._deliver = deliver
        self._events = events
        self._clock = clock
        self._hooks: dict[str, _Hook] = {}
        self._under_way: dict[str, set[asyncio.Task[None]]] = {}

    async def open(self) -> None:
        for project, webhook, sealed in await self._rows.all():
            self._hooks[project] = _Hook(webhook, await self._keys.unseal(sealed, _about(project)))

    def close(self) -> None:
        """What is under way is given up: the questions are asked by the event and the list too."""
        for tasks in self._under_way.values():
            for task in tasks:
                task.cancel()

    def get(self, project: str) -> Webhook:
        """Raises `NotFound`."""
        if (hook := self._hooks.get(project)) is None:
            raise NotFound("the project has no webhook for approvals", hint="PUT /v1/approvals/webhook sets one")
        return hook.webhook

    async def set(self, actor: Actor, wanted: WebhookSet) -> Webhook:
        """From now on there. The answer is the only one that tells the secret."""
        secret = f"whsec_{secrets.token_hex(32)}"
        webhook = Webhook(url=wanted.url, created_at=moment(self._clock()))
        await self._rows.put(actor.project, webhook, await self._keys.seal(secret.encode(), _about(actor.project)), by=actor.key)
        self._hooks[actor.project] = _Hook(webhook, secret.encode())
        self._events.note("webhook.set", actor.project, actor=actor.key, data={"url": wanted.url})
        return webhook.model_copy(update={"secret": secret})

    async def remove(self, actor: Actor) -> None:
        """Raises `NotFound`."""
        self.get(actor.project)
        await self.forget(actor.project)
        self._events.note("webhook.removed", actor.project, actor=actor.key)

    async def forget(self, project: str) -> None:
        """The project is gone, or wants to be told no longer."""
        self._hooks.pop(project, None)
        for task in self._under_way.pop(project, set()):
            task.cancel()
        await self._rows.remove(project)

    def approval(self, record: Record, data: Mapping[str, Any]) -> None:
        """One begins to wait, or was decided."""
        hook = self._hooks.get(record.project)
        under_way = self._under_way.setdefault(record.project, set()) if hook is not None else set[asyncio.Task[None]]()
        if hook is None or len(under_way) >= AT_ONCE:
            return
        told = {"event": "egress.approval", "project": record.project, "sandbox": record.id, "sandbox_name": record.name, "tags": record.tags}
        body = json.dumps({**told, "approval": dict(data)}).encode()
        task = asyncio.get_running_loop().create_task(self._tell(hook, record, str(data["id"]), body, _deadline(data)), name="webhook")
        under_way.add(task)
        task.add_done_callback(under_way.discard)

    async def _tell(self, hook: _Hook, record: Record, approval: str, body: bytes, deadline: float | None) -> None:
        delivery = secrets.token_hex(16)

        def moot(wait: float) -> bool:
            return deadline is not None and self._clock() + wait >= deadline

        headers = lambda: signed(hook.secret, int(self._clock()), delivery, body)  # noqa: E731 - each try has its own time
        if (reason := await send(self._deliver, hook.webhook.url, headers, body, moot)) is not None:
            data = {"approval": approval, "url": hook.webhook.url, "reason": reason}
            self._events.note("webhook.failed", record.project, sandbox=record.id, data=data)


async def send(deliver: Deliver, url: str, headers: Callable[[], Headers], body: bytes, moot: Callable[[float], bool] = lambda _: False) -> str | None:
    """Post it, and again after each of `WAITS` while it fails; None, or why it was given up. `moot`: whether it is of no use any more after so many seconds."""
    for wait in (*WAITS, None):
        try:
            await deliver(url, headers(), body)
        except Forbidden as error:
            return error.message[:500]
        except Unavailable as error:
            if wait is None or moot(wait):
                return error.message[:500]
            await asyncio.sleep(wait)
        else:
            break
    return None


def signed(secret: bytes, at: int, delivery: str, body: bytes) -> Headers:
    """What goes with a body. `delivery` is the same for every try."""
    return [
        ("Content-Type", "application/json"),
        ("User-Agent", "corral"),
        ("Corral-Delivery", delivery),
        ("Corral-Signature", f"t={at},v1={signature(secret, at, body)}"),
    ]


def signature(secret: bytes, at: int, body: bytes) -> str:
    """HMAC-SHA256 over the time, a point, and the body; in hexadecimal digits."""
    return hmac.new(secret, b"%d." % at + body, hashlib.sha256).hexdigest()


def _deadline(data: Mapping[str, Any]) -> float | None:
    """Of a question; a decision is told in any case."""
    return None if "decision" in data else datetime.fromisoformat(data["deadline"]).timestamp()


def _about(project: str) -> bytes:
    return f"{project}\0webhook".encode()
