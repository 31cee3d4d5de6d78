"""The server and sentries may be killed in the middle of a pause, a resume or a fork: what runs goes on, what is paused stays whole, what was half made is gone."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import threading
import time
from contextlib import closing

import pytest

from corral import Sandbox
from corral.errors import CorralError
from corral.places import Places
from harness.api import Api
from harness.server import Server

COUNT = "i=0; while [ $i -lt 100000 ]; do echo line $i; i=$((i+1)); sleep 0.01; done"


def attempt(box: Sandbox, deed: str) -> threading.Thread:
    """Begin it in the background; what comes of it is nobody's business here."""

    def do() -> None:
        try:
            box.fork(2) if deed == "fork" else getattr(box, deed)()
        except CorralError:
            pass

    thread = threading.Thread(target=do)
    thread.start()
    return thread


@pytest.mark.parametrize("deed", ["pause", "resume", "fork"])
def test_a_server_killed_in_the_middle_harms_nothing(server: Server, deed: str) -> None:
    places = Places(server.home)
    with Sandbox.create("tiny", timeout=None) as box:
        counting = box.exec("sh", "-c", COUNT)
        lines = iter(counting.stdout)
        told = [next(lines)]
        for _ in range(3):
            if deed == "resume":
                box.pause()
            thread = attempt(box, deed)
            # Anywhere within it: the test is about every moment.
            time.sleep(random.uniform(0.01, 0.3))
            server.kill()
            server.start()
            thread.join(timeout=120)
            for kid in [kid for kid in Sandbox.list() if kid.info.forked_from == box.id]:
                # One that was answered for lives; it is as whole as its source.
                assert kid.run("echo alive").stdout == "alive\n"
                kid.delete()
            assert box.refresh().state in ("running", "frozen", "paused")
            box.resume()
            told += [next(lines) for _ in range(20)]
            assert box.run("echo alive").stdout == "alive\n"
            # Nothing half made is left.
            nothing_half_made(places)
        assert told == [f"line {number}\n" for number in range(len(told))]
        counting.kill()


def nothing_half_made(places: Places) -> None:
    """What was being removed when the call was answered has gone."""
    deadline = time.monotonic() + 60
    while left := [path.name for path in (*places.memory.glob(".*"), *places.paused.iterdir())]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def sentry_of(places: Places, id: str) -> int:
    import json

    return int(json.loads((places.boxes / f"{id}.json").read_bytes())["identity"]["pid"])


@pytest.mark.parametrize("deed", ["pause", "fork"])
def test_a_sentry_killed_in_the_middle_leaves_its_disk_and_no_traces(server: Server, deed: str) -> None:
    places = Places(server.home)
    with Sandbox.create("tiny", timeout=None) as box:
        box.run("echo kept > /kept; sync").check()
        thread = attempt(box, deed)
        time.sleep(random.uniform(0.01, 0.1))
        try:
            os.kill(sentry_of(places, box.id), signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError):
            pass  # it was paused already
        thread.join(timeout=120)
        for kid in [kid for kid in Sandbox.list() if kid.info.forked_from == box.id]:
            kid.delete()
        deadline = time.monotonic() + 60
        while box.refresh().state not in ("stopped", "paused") and time.monotonic() < deadline:
            time.sleep(0.05)
        box.resume() if box.state == "paused" else box.start()
        assert box.run("cat /kept").stdout == "kept\n"
        nothing_half_made(places)


def test_a_fork_is_repeated_by_its_key_after_a_crash(server: Server) -> None:
    """The forks were made and written down, and the server ended before it had written what it answered."""
    with Sandbox.create("tiny", timeout=None) as box:
        api = Api(server)
        asked = {"json": {"children": [{"env": {"N": "0"}}, {"env": {"N": "1"}}]}, "headers": {"Idempotency-Key": "fork-twice"}}
        made = [one["sandbox"]["id"] for one in api.ok("POST", f"/v1/sandboxes/{box.id}/fork", status=201, **asked)["forks"]]
        server.kill()
        with closing(sqlite3.connect(Places(server.home).database)) as database, database:
            assert database.execute("update idempotency set status = null, body = null where key = 'fork-twice'").rowcount == 1
        server.start()
        again = [one["sandbox"]["id"] for one in api.ok("POST", f"/v1/sandboxes/{box.id}/fork", status=201, **asked)["forks"]]
        assert again == made
        assert [Sandbox.get(id).run("echo $N").stdout for id in made] == ["0\n", "1\n"]
        Sandbox.get(made[0]).delete()
        rest = api.ok("POST", f"/v1/sandboxes/{box.id}/fork", status=201, **asked)["forks"]
        assert rest[0]["error"]["code"] == "sandbox_ended"
        assert rest[1]["sandbox"]["id"] == made[1]
        Sandbox.get(made[1]).delete()
        assert [kid.id for kid in Sandbox.list() if kid.info.forked_from == box.id] == []
        api.close()
