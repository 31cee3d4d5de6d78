"""What two things at once must not do to each other: over HTTP, on the real engine."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from corral.node import record
from corral.places import Places
from harness.api import Api
from harness.server import Server

T = TypeVar("T")
PATIENCE = 60.0


@pytest.fixture
def api(server: Server) -> Iterator[Api]:
    api = Api(server)
    yield api
    api.close()


@contextmanager
def project(api: Api, **limits: float) -> Generator[Api]:
    """Requests of a project of its own."""
    name = f"p-{uuid.uuid4().hex[:12]}"
    api.ok("POST", "/v1/projects", status=201, json={"name": name, **limits})
    key = api.ok("POST", "/v1/keys", status=201, json={"name": "only", "project": name})
    with closing(Api(api.server, key["value"])) as of:
        yield of
    api.ok("DELETE", f"/v1/keys/{key['id']}", status=204)
    api.ok("DELETE", f"/v1/projects/{name}", status=204)


def at_once(number: int, do: Callable[[int], T]) -> list[T]:
    """Do it so many times, all at the same moment."""
    with ThreadPoolExecutor(number) as threads:
        return list(threads.map(do, range(number)))


def gone(path: Path) -> Callable[[], bool]:
    return lambda: not path.exists()


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, "it does not come to be"
        time.sleep(0.01)


def test_starts_at_once_do_not_pass_the_quota(api: Api) -> None:
    with project(api, max_cpu=1.0) as of:
        boxes = [of.create(cpu=0.5, memory=64)["id"] for _ in range(2)]
        for box in boxes:
            of.ok("POST", f"/v1/sandboxes/{box}/stop")
        boxes += [of.create(cpu=0.5, memory=64)["id"] for _ in range(2)]
        for box in boxes[2:]:
            of.ok("POST", f"/v1/sandboxes/{box}/stop")
        answers = at_once(4, lambda number: of.request("POST", f"/v1/sandboxes/{boxes[number]}/start").status_code)
        assert sorted(answers) == [200, 200, 429, 429]
        # What a failed or finished start had promised is not kept back.
        for box in boxes:
            of.ok("POST", f"/v1/sandboxes/{box}/stop")
        for box in boxes[:2]:
            of.ok("POST", f"/v1/sandboxes/{box}/start")
        for box in boxes:
            of.delete(box)


def test_snapshots_at_once_do_not_pass_the_quota(api: Api) -> None:
    with project(api, max_disk=4096 + 30) as of:
        box = of.create()["id"]
        of.run(box, "head -c 9000000 /dev/urandom > /file; sync")
        answers = at_once(8, lambda _: of.request("POST", f"/v1/sandboxes/{box}/snapshots", json={}))
        made = [answer.json() for answer in answers if answer.status_code == 201]
        assert {answer.status_code for answer in answers} == {201, 429}
        assert sum(-(-one["size"] // (1 << 20)) for one in made) <= 30
        for one in made:
            of.ok("DELETE", f"/v1/snapshots/{one['id']}")
        of.delete(box)


def test_a_sandbox_that_dies_before_its_row_is_written_is_not_said_to_run(api: Api, server: Server) -> None:
    places = Places(server.home)
    before = {path.stem for path in places.boxes.glob("sb-*.json")}

    def mine() -> list[record.Record]:
        return [one for one in record.read_all(places.boxes) if one.spec.id not in before]

    with ThreadPoolExecutor(1) as threads, closing(sqlite3.connect(server.home / "corral.db", isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        try:
            creating = threads.submit(api.request, "POST", "/v1/sandboxes", json={"image": "tiny"})
            until(lambda: bool(mine()))
            (box,) = mine()
            # Its host name is the last thing that is done in it; the node's answer follows.
            until((places.run / "disks" / box.spec.id / "m" / "u" / "etc" / "hostname").exists)
            os.kill(box.identity.pid, signal.SIGKILL)
            until(lambda: not mine())
            # The server tells itself of the end a few turns of its loop later.
            for _ in range(50):
                api.request("GET", "/healthz")
        finally:
            database.execute("ROLLBACK")
        answer = creating.result(timeout=PATIENCE)
    if answer.status_code == 201:
        until(lambda: api.ok("GET", f"/v1/sandboxes/{box.spec.id}")["state"] == "stopped")
        api.ok("POST", f"/v1/sandboxes/{box.spec.id}/start")
        assert api.run(box.spec.id, "echo alive")[0] == b"alive\n"
        api.delete(box.spec.id)
    else:
        assert api.ok("GET", f"/v1/sandboxes/{box.spec.id}")["state"] == "failed"


def test_a_volume_can_be_deleted_while_its_last_sandbox_ends(api: Api, server: Server) -> None:
    def deleted(volume: str) -> Callable[[], bool]:
        return lambda: api.request("DELETE", f"/v1/volumes/{volume}").status_code == 200

    for _ in range(2):
        volume = api.ok("POST", "/v1/volumes", status=201, json={"name": f"v-{uuid.uuid4().hex[:12]}", "size": 64})["id"]
        box = api.create(volumes={"/data": {"volume": volume}})["id"]
        api.run(box, "head -c 30000000 /dev/urandom > /data/file")
        with ThreadPoolExecutor(1) as threads:
            ending = threads.submit(api.delete, box)
            until(deleted(volume))
            ending.result(timeout=PATIENCE)
        assert not (Places(server.home).volumes / f"{volume}.img").exists()
        until(gone(Places(server.home).run / "volumes" / volume))


def test_automatic_checkpoints_come_once_for_many_and_never_under_an_old_name(api: Api) -> None:
    box = api.create(checkpoint_every=1)["id"]

    def names() -> list[str]:
        return [one["name"] for one in api.ok("GET", f"/v1/sandboxes/{box}/checkpoints")["checkpoints"]]

    at_once(8, lambda _: [api.run(box, "true") for _ in range(3)])
    # Stopping waits for the one that is being made and the one that is due, not for one for each command.
    api.ok("POST", f"/v1/sandboxes/{box}/stop")
    assert 1 <= len(names()) <= 20
    last = int(names()[-1].removeprefix("auto-"))
    for name in names():
        api.ok("DELETE", f"/v1/sandboxes/{box}/checkpoints/{name}")
    api.ok("POST", f"/v1/sandboxes/{box}/start")
    api.run(box, "true")
    until(lambda: bool(names()))
    assert names()[0] == f"auto-{last + 1}"
    api.delete(box)


def test_a_snapshot_deleted_while_it_is_compared_leaves_no_mount(api: Api, server: Server) -> None:
    box = api.create()["id"]
    api.run(box, "mkdir /d; i=0; while [ $i -lt 300 ]; do echo $i > /d/$i; i=$((i+1)); done")
    directory = Places(server.home).snapshots
    with ThreadPoolExecutor(4) as threads:
        for _ in range(8):
            made = api.ok("POST", f"/v1/sandboxes/{box}/snapshots", status=201, json={})["id"]
            diffs = [threads.submit(api.request, "GET", f"/v1/sandboxes/{box}/diff", params={"before": made}) for _ in range(2)]
            api.ok("DELETE", f"/v1/snapshots/{made}")
            assert {diff.result(timeout=PATIENCE).status_code for diff in diffs} <= {200, 404}
            for path in (directory / f"{made}.img", directory / ".mounted" / f"{made}.img"):
                until(gone(path))
    api.delete(box)


def test_reserved_memory_is_kept_from_others(api: Api) -> None:
    free = next(int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable")) // 1024
    most = {"image": "tiny", "memory": free // 2, "reserve": True}
    box = api.create(**most)
    assert box["reserve"]
    refused = api.request("POST", "/v1/sandboxes", json=most)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")
    assert f"{free // 2} are to be reserved" in refused.json()["error"]["message"]
    # Those that take what they use find room.
    api.delete(api.create(image="tiny", memory=free // 2)["id"])
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(api.request, "POST", "/v1/sandboxes", json={**most, "wait": PATIENCE})
        api.delete(box["id"])
        answer = waiting.result()
    assert answer.status_code == 201
    api.delete(answer.json()["id"])


def test_one_that_must_not_sleep_is_awake_when_others_sleep(api: Api) -> None:
    awake = api.create(freeze=False)["id"]
    others = [api.create()["id"] for _ in range(2)]

    def frozen(box: str) -> bool:
        return api.ok("GET", f"/v1/sandboxes/{box}")["frozen"]

    until(lambda: all(frozen(box) for box in others))
    # It has not been used for longer than they.
    assert not frozen(awake)
    for box in (awake, *others):
        api.delete(box)
