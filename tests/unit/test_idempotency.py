"""One answer for one key."""

from __future__ import annotations

import asyncio

import pytest

from corral.control import idempotency
from corral.control.idempotency import KEEP, Answer, Claim, Kept, Replays
from corral.errors import Conflict, InvalidArgument, Unavailable

CLAIM = Claim("default", "k", "f")


class Maker:
    """Makes something, slowly, and counts."""

    def __init__(self) -> None:
        self.made = 0
        self.go = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self) -> Answer:
        self.made += 1
        await self.go.wait()
        if self.error is not None:
            raise self.error
        return Answer(201, b"%d" % self.made)


def replays(now: float = 0.0) -> Replays:
    return Replays(lambda: now)


async def test_many_at_once_are_one() -> None:
    known, make = replays(), Maker()
    asking = [asyncio.create_task(known.once(CLAIM, make)) for _ in range(10)]
    await asyncio.sleep(0)
    make.go.set()
    assert await asyncio.gather(*asking) == [Answer(201, b"1")] * 10
    assert await known.once(CLAIM, make) == Answer(201, b"1")
    assert make.made == 1


@pytest.mark.parametrize("finished", [True, False])
async def test_another_request_with_the_same_key_is_refused(finished: bool) -> None:
    known, make = replays(), Maker()
    first = asyncio.create_task(known.once(CLAIM, make))
    if finished:
        make.go.set()
        await first
    await asyncio.sleep(0)
    with pytest.raises(Conflict, match="another request"):
        await known.once(Claim("default", "k", "other"), make)
    make.go.set()
    assert (await first).body == b"1"
    assert (await known.once(Claim("another", "k", "other"), make)).body == b"2"


async def test_what_failed_may_be_tried_again() -> None:
    known, make = replays(), Maker()
    make.go.set()
    make.error = Unavailable("no room")
    with pytest.raises(Unavailable):
        await known.once(CLAIM, make)
    make.error = None
    assert (await known.once(CLAIM, make)).body == b"2"


async def test_who_waits_for_one_that_is_interrupted_makes_it() -> None:
    known, make = replays(), Maker()
    first = asyncio.create_task(known.once(CLAIM, make))
    await asyncio.sleep(0)
    second = asyncio.create_task(known.once(CLAIM, make))
    await asyncio.sleep(0)
    first.cancel()
    make.go.set()
    assert (await second).body == b"2"
    assert first.cancelled()


async def test_what_an_earlier_server_made_is_found_again() -> None:
    known, make = replays(), Maker()
    make.go.set()
    known.load(Kept(CLAIM, 0.0, subject="sb-alive"))
    known.load(Kept(Claim("default", "dead", "f"), 0.0, subject="sb-dead"))
    known.load(Kept(Claim("default", "told", "f"), 0.0, subject="sb-x", answer=Answer(201, b"told")))

    async def again(id: str) -> Answer | None:
        return Answer(201, id.encode()) if id == "sb-alive" else None

    assert (await known.once(CLAIM, make, again=again)).body == b"sb-alive"
    assert (await known.once(Claim("default", "told", "f"), make, again=again)).body == b"told"
    assert (await known.once(Claim("default", "dead", "f"), make, again=again)).body == b"1"


async def test_keys_count_for_a_day() -> None:
    now = [0.0]
    known, make = Replays(lambda: now[0]), Maker()
    make.go.set()
    assert (await known.once(CLAIM, make)).body == b"1"
    now[0] = KEEP + 1
    assert (await known.once(CLAIM, make)).body == b"2"


@pytest.mark.parametrize("key", ["", "x" * 256, "a\nb"])
def test_keys_have_a_form(key: str) -> None:
    with pytest.raises(InvalidArgument):
        idempotency.claim("default", key, method="POST", path="/", body=b"")


def test_the_fingerprint_is_of_method_path_and_body() -> None:
    claims = {
        idempotency.claim("default", "k", method=method, path=path, body=body).fingerprint
        for method, path, body in (("POST", "/a", b"b"), ("PUT", "/a", b"b"), ("POST", "/b", b"b"), ("POST", "/a", b"c"))
    }
    assert len(claims) == 4


async def test_a_later_project_of_the_name_is_given_no_answer_of_the_earlier_one() -> None:
    known, make = replays(), Maker()
    make.go.set()
    await known.once(CLAIM, make)
    known.project_removed("another")
    assert (await known.once(CLAIM, make)).body == b"1"
    known.project_removed("default")
    assert (await known.once(CLAIM, make)).body == b"2"
