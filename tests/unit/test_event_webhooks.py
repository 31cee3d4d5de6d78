"""What webhooks tell, and what they leave out: a real store, and a receiver that can be turned off."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from corral.control import webhooks as module
from corral.control.event_webhooks import MOST, OLDEST, EventWebhooks
from corral.control.events import EventLog
from corral.control.record import Record
from corral.control.roles import Actor
from corral.errors import InvalidArgument, QuotaExceeded, Unavailable
from corral.schema.account import Role
from corral.schema.webhook import EventWebhookCreate, EventWebhookUpdate
from corral.store import Store
from corral.store.keyring import FileKeyRing
from harness.records import record

ACTOR = Actor("ke-a", "default", Role.MEMBER)
URL = "https://example.com/hook"
BOX = record(id="sb-aaaaaaaaaaaaaaaa", tags={"team": "a"})


class Receiver:
    """Somebody's own server. `down` for so many requests more."""

    def __init__(self) -> None:
        self.down = 0
        self.taken: list[dict[str, Any]] = []
        self.news = asyncio.Event()

    async def __call__(self, url: str, headers: Sequence[tuple[str, str]], body: bytes) -> None:
        if self.down:
            self.down -= 1
            raise Unavailable("it is down")
        self.taken.append(json.loads(body))
        self.news.set()

    async def has(self, count: int) -> list[Any]:
        async with asyncio.timeout(20):
            while len(self.taken) < count:
                self.news.clear()
                await self.news.wait()
        return [one["data"]["number"] for one in self.taken]


class Place:
    """One server's webhooks. `now` in seconds since 1970."""

    def __init__(self, store: Store, keys: Path) -> None:
        self.now = 1e9
        self.receiver = Receiver()
        self.events = EventLog(store.events, lambda: self.now)
        self.hooks = EventWebhooks(store.event_webhooks, FileKeyRing(keys), self.receiver, self.events, lambda: self.now, self._find)

    async def _find(self, project: str, sandbox: str) -> Record | None:
        return BOX if (project, sandbox) == (BOX.project, BOX.id) else None

    def happens(self, number: int, kind: str = "sandbox.created") -> None:
        self.events.note(kind, BOX.project, sandbox=BOX.id, data={"number": number})

    async def failures(self, count: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        async for event in self.events.follow("default", after=0, kinds=("webhook.failed",)):
            found.append(event.data)
            if len(found) == count:
                break
        return found


@pytest.fixture
async def place(store: Store, tmp_path: Path) -> AsyncIterator[Place]:
    place = Place(store, tmp_path / "secrets.key")
    await place.events.open()
    yield place
    place.hooks.close()


def wanted(**fields: Any) -> EventWebhookCreate:
    return EventWebhookCreate.model_validate({"url": URL, **fields})


async def test_one_that_is_not_taken_is_given_up_and_the_next_is_told(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAITS", (0.0, 0.0))
    made = await place.hooks.create(ACTOR, wanted())
    place.receiver.down = 3
    for number in range(3):
        place.happens(number)
    assert await place.receiver.has(2) == [1, 2]
    (failed,) = await place.failures(1)
    assert (failed["webhook"], failed["url"], failed["reason"]) == (made.id, URL, "it is down")


async def test_what_is_too_old_is_left_out_and_that_is_said_once(store: Store, place: Place, tmp_path: Path) -> None:
    await place.hooks.create(ACTOR, wanted())
    place.hooks.close()
    for number in range(3):
        place.happens(number)
    place.now += OLDEST + 1
    place.happens(3)
    later = Place(store, tmp_path / "secrets.key")
    later.now = place.now
    await store.database.flush()
    await later.events.open()
    await later.hooks.open()
    assert await later.receiver.has(1) == [3]
    (failed,) = await later.failures(1)
    assert "older than 60 minutes" in failed["reason"]
    later.hooks.close()


async def test_nothing_else_is_told_than_what_is_wanted(place: Place) -> None:
    await place.hooks.create(ACTOR, wanted(kinds=["sandbox.paused"], tags={"team": "a"}))
    await place.hooks.create(ACTOR, wanted(tags={"team": "b"}))
    place.happens(0)
    place.happens(1, "sandbox.paused")
    place.happens(2, "process.started")
    place.happens(3, "sandbox.paused")
    assert await place.receiver.has(2) == [1, 3]


async def test_there_are_not_too_many_and_null_is_no_change(place: Place) -> None:
    made = [await place.hooks.create(ACTOR, wanted(enabled=False)) for _ in range(MOST)]
    with pytest.raises(QuotaExceeded):
        await place.hooks.create(ACTOR, wanted())
    await place.hooks.remove(ACTOR, made[0].id)
    await place.hooks.create(ACTOR, wanted(enabled=False))
    with pytest.raises(InvalidArgument, match="null"):
        await place.hooks.update(ACTOR, made[1].id, EventWebhookUpdate.model_validate({"url": None}))
