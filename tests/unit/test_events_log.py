"""Who follows events gets each once, in order, whatever was stored before and whatever comes, and only what is stored."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from corral.control import events as module
from corral.control.events import EventLog
from corral.schema.observe import Event
from corral.store import Store


async def opened(store: Store) -> EventLog:
    log = EventLog(store.events, itertools.count().__next__)
    await log.open()
    return log


async def take(log: EventLog, count: int, *, after: int = 0, sandbox: str | None = None) -> list[Event]:
    found: list[Event] = []
    follower = log.follow("default", after=after, sandbox=sandbox)
    async for event in follower:
        found.append(event)
        if len(found) == count:
            break
    return found


async def test_a_follower_gets_what_was_and_what_comes(store: Store) -> None:
    log = await opened(store)
    for _ in range(1200):
        log.note("old", "default")
    following = asyncio.create_task(take(log, 2400))
    for _ in range(1200):
        log.note("new", "default")
        await asyncio.sleep(0)
    assert [event.seq for event in await following] == list(range(1, 2401))


async def test_a_follower_far_behind_gets_everything(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RECENT", 8)
    log = await opened(store)
    following = asyncio.create_task(take(log, 1500))
    for number in range(1500):
        log.note(f"k{number}", "default")
    assert [event.kind for event in await following] == [f"k{number}" for number in range(1500)]


async def test_followers_of_others_are_not_disturbed(store: Store) -> None:
    log = await opened(store)
    following = asyncio.create_task(take(log, 3, sandbox="sb-a"))
    for number in range(9):
        log.note("k", "default" if number % 2 else "another", sandbox="sb-a" if number % 3 else "sb-b")
    for _ in range(3):
        log.note("last", "default", sandbox="sb-a")
    assert [event.seq for event in await following] == [2, 6, 8]


async def test_a_later_server_counts_on(store: Store) -> None:
    first = await opened(store)
    first.note("a", "default")
    second = await opened(store)
    second.note("b", "default")
    assert [(event.seq, event.kind) for event in await take(second, 2)] == [(1, "a"), (2, "b")]


async def test_what_can_not_be_stored_is_told_to_nobody(store: Store) -> None:
    log = await opened(store)
    await store.events.add([Event.model_validate({"seq": 2, "at": 0, "kind": "in the way", "project": "another"})])
    for kind in "abc":
        log.note(kind, "default")
    assert [event.kind for event in await take(log, 2)] == ["a", "c"]


async def test_nobody_follows_what_happened_in_an_earlier_project_of_the_name(store: Store) -> None:
    log = await opened(store)
    log.note("other", "another")
    log.note("old", "default")
    await store.events.last()
    log.project_removed("default")
    log.note("new", "default")
    assert [event.kind for event in await take(log, 1)] == ["new"]
