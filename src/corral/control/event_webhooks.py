"""Telling projects' own servers what happens to their sandboxes: signed, in order, tried again, and going on where it was after a restart.

The log of events is the queue: every webhook follows it from its own position, which is stored. So nothing is kept for those who are slow but what is kept anyway,
and what is older than `OLDEST` is left out.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import structlog
from pydantic import SecretStr

from corral.control.events import EventLog
from corral.control.ports import Deliver, EventWebhookRows, KeyRing
from corral.control.record import Record, moment
from corral.control.roles import Actor
from corral.control.webhooks import WAITS, Headers, send, signed
from corral.errors import InvalidArgument, NotFound, QuotaExceeded
from corral.ids import new_id
from corral.schema.observe import Event
from corral.schema.webhook import EventWebhook, EventWebhookCreate, EventWebhookUpdate

MOST = 20
"""Webhooks of one project."""
OLDEST = 3600.0
"""Seconds after which an event is told no more; for as long, sandboxes that have ended can be looked at."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Hook:
    """A webhook as the control plane keeps it. `sealed`: its secret, encrypted. `position`: `seq` of the newest event that it is done with."""

    id: str
    project: str
    name: str
    url: str
    kinds: tuple[str, ...]
    tags: Mapping[str, str]
    enabled: bool
    dialect: str
    sealed: bytes
    position: int
    created_at: float
    created_by: str

    def show(self) -> EventWebhook:
        """As the API shows it."""
        return EventWebhook(
            id=self.id,
            project=self.project,
            name=self.name,
            url=self.url,
            kinds=[*self.kinds],
            tags=dict(self.tags),
            enabled=self.enabled,
            dialect=self.dialect,
            position=self.position,
            created_at=moment(self.created_at),
        )


class Dialect(Protocol):
    """The form in which events are told."""

    async def body(self, event: Event, record: Record) -> bytes | None:
        """None: there is nothing to tell."""
        ...

    def headers(self, hook: Hook, secret: bytes, event: Event, body: bytes) -> Headers:
        """Of one try."""
        ...


class EventWebhooks:
    """Of all projects. `clock` in seconds since 1970; `find`: a sandbox of a project, also one that ended a while ago."""

    def __init__(
        self,
        rows: EventWebhookRows,
        keys: KeyRing,
        deliver: Deliver,
        events: EventLog,
        clock: Callable[[], float],
        find: Callable[[str, str], Awaitable[Record | None]],
    ) -> None:
        self._rows = rows
        self._keys = keys
        self._deliver = deliver
        self._events = events
        self._clock = clock
        self._find = find
        self._hooks: dict[str, Hook] = {}
        self._telling: dict[str, asyncio.Task[None]] = {}
        self.dialects: dict[str, Dialect] = {"corral": _Own(clock)}

    async def open(self) -> None:
        """Go on with what is not told yet."""
        for hook in await self._rows.all():
            self._hooks[hook.id] = hook
            self._begin(hook)

    def close(self) -> None:
        """What is under way is told by the next server."""
        for task in self._telling.values():
            task.cancel()

    def all(self, project: str) -> list[Hook]:
        """The oldest first."""
        return [hook for hook in self._hooks.values() if hook.project == project]

    def get(self, project: str, id: str) -> Hook:
        """Raises `NotFound`."""
        hook = self._hooks.get(id)
        if hook is None or hook.project != project:
            raise NotFound(f"there is no webhook {id[:80]}", hint="GET /v1/webhooks lists those there are")
        return hook

    async def create(self, actor: Actor, wanted: EventWebhookCreate, *, dialect: str = "corral") -> EventWebhook:
        """It is told of what happens from now on. The answer is the only one with the secret, if that was made here. Raises `QuotaExceeded`."""
        if len(self.all(actor.project)) >= MOST:
            raise QuotaExceeded(f"the project has {MOST} webhooks", hint="delete one that nobody needs, DELETE /v1/webhooks/{id}")
        secret = f"whsec_{secrets.token_hex(32)}" if wanted.secret is None else wanted.secret.get_secret_value()
        hook = Hook(
            id=new_id("wh"),
            project=actor.project,
            name=wanted.name,
            url=wanted.url,
            kinds=tuple(dict.fromkeys(wanted.kinds)),
            tags=dict(wanted.tags),
            enabled=wanted.enabled,
            dialect=dialect,
            sealed=await self._sealed(actor.project, secret),
            position=self._events.seq,
            created_at=self._clock(),
            created_by=actor.key,
        )
        self._hooks[hook.id] = hook
        await self._rows.put(hook)
        self._begin(hook)
        self._note("webhook.created", hook, actor, url=hook.url)
        return hook.show().model_copy(update={"secret": secret if wanted.secret is None else None})

    async def update(self, actor: Actor, id: str, wanted: EventWebhookUpdate) -> EventWebhook:
        """Change what was given. What is under way is told anew. Raises `NotFound`, and `InvalidArgument` for null."""
        hook = self.get(actor.project, id)
        changes: dict[str, Any] = {name: getattr(wanted, name) for name in wanted.model_fields_set}
        if empty := sorted(name for name, value in changes.items() if value is None):
            raise InvalidArgument(f"{empty[0]}: null is not a value of it", hint="leave it out to keep it as it is", details={"field": empty[0]})
        if "kinds" in changes:
            changes["kinds"] = tuple(dict.fromkeys(changes["kinds"]))
        secret: SecretStr | None = changes.pop("secret", None)
        if secret is not None:
            changes["sealed"] = await self._sealed(actor.project, secret.get_secret_value())
        await self._end(hook.id)
        hook = self.get(actor.project, id)  # it may have got further, or be gone
        if changes.get("enabled") and not hook.enabled:
            changes["position"] = self._events.seq
        fresh = self._hooks[id] = replace(hook, **changes)
        await self._rows.put(fresh)
        self._begin(fresh)
        self._note("webhook.changed", fresh, actor, changed=sorted(wanted.model_fields_set))
        return fresh.show()

    async def remove(self, actor: Actor, id: str) -> None:
        """Nothing is told there any more. Raises `NotFound`."""
        hook = self.get(actor.project, id)
        await self._forget(hook)
        self._note("webhook.removed", hook, actor, url=hook.url)

    async def forget(self, project: str) -> None:
        """The project is gone."""
        for hook in self.all(project):
            await self._forget(hook)

    async def _forget(self, hook: Hook) -> None:
        self._hooks.pop(hook.id, None)
        await self._end(hook.id)
        await self._rows.remove(hook.id)

    def _begin(self, hook: Hook) -> None:
        if hook.enabled and hook.id not in self._telling and self._hooks.get(hook.id) is hook:
            self._telling[hook.id] = asyncio.get_running_loop().create_task(self._tell_all(hook), name=f"webhook {hook.id}")

    async def _end(self, id: str) -> None:
        task = self._telling.pop(id, None)
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _tell_all(self, hook: Hook) -> None:
        while True:
            try:
                await self._follow(self._hooks[hook.id])
            except Exception:
                # The store fails, or our own code: later is another chance.
                log.exception("webhook_failed", webhook=hook.id)
                await asyncio.sleep(WAITS[-1])

    async def _follow(self, hook: Hook) -> None:
        secret = await self._keys.unseal(hook.sealed, _about(hook.project))
        late = False
        async for event in self._events.follow(hook.project, after=hook.position, kinds=hook.kinds):
            if self._clock() - event.at.timestamp() <= OLDEST:
                late = False
                await self._tell(hook, secret, event)
            elif not late:
                late = True
                self._failed(hook, event, f"events that are older than {OLDEST / 60:g} minutes are left out, beginning with this one")
            self._hooks[hook.id] = replace(self._hooks[hook.id], position=event.seq)
            self._rows.reached(hook.id, event.seq)

    async def _tell(self, hook: Hook, secret: bytes, event: Event) -> None:
        record = None if event.sandbox is None else await self._find(hook.project, event.sandbox)
        if record is None or not hook.tags.items() <= record.tags.items():
            return
        dialect = self.dialects[hook.dialect]
        if (body := await dialect.body(event, record)) is None:
            return
        reason = await send(self._deliver, hook.url, lambda: dialect.headers(hook, secret, event, body), body)
        if reason is not None:
            self._failed(hook, event, reason)

    def _failed(self, hook: Hook, event: Event, reason: str) -> None:
        data = {"webhook": hook.id, "event": event.seq, "url": hook.url, "reason": reason}
        self._events.note("webhook.failed", hook.project, sandbox=event.sandbox, data=data)

    def _note(self, kind: str, hook: Hook, actor: Actor, **data: Any) -> None:
        self._events.note(kind, hook.project, actor=actor.key, data={"webhook": hook.id, **data})

    async def _sealed(self, project: str, secret: str) -> bytes:
        return await self._keys.seal(secret.encode(), _about(project))


class _Own:
    """Corral's form: the fields of `GET /v1/events`, and what the sandbox is called."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock

    async def body(self, event: Event, record: Record) -> bytes:
        known = event.model_dump(mode="json")
        return json.dumps({"event": known.pop("kind"), **known, "sandbox_name": record.name, "tags": dict(record.tags)}).encode()

    def headers(self, hook: Hook, secret: bytes, event: Event, body: bytes) -> Headers:
        # The same after a restart, so that one that was told twice can be known.
        delivery = hashlib.sha256(f"{hook.id} {event.seq}".encode()).hexdigest()[:32]
        return [*signed(secret, int(self._clock()), delivery, body), ("Corral-Webhook", hook.id)]


def _about(project: str) -> bytes:
    return f"{project}\0event webhook".encode()
