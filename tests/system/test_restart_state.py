"""The server is killed in the middle of snapshots, deletions and rewinds: what was answered is there, what was not is whole or gone, and no sandbox is harmed."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from corral.places import Places
from harness.api import Api
from harness.server import Server

ROUNDS = int(os.environ.get("CORRAL_CRASH_ROUNDS", "8"))
"""Kills of the server; `CORRAL_CRASH_ROUNDS=100` is the long form."""


@pytest.fixture
def api(server: Server) -> Iterator[Api]:
    api = Api(server)
    yield api
    api.close()


def killed_in_the_middle(server: Server, random: random.Random, do: Callable[[Api], Any]) -> bool:
    """Whether `do` was answered before the server was killed. Afterwards another one runs."""
    answered: list[bool] = []

    def ask() -> None:
        api = Api(server)
        try:
            do(api)
            answered.append(True)
        except (httpx2.HTTPError, AssertionError):
            pass
        finally:
            api.close()

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(random.uniform(0, 0.12))  # any moment of it
    server.kill()
    asking.join()
    server.start()
    return bool(answered)


def on_disk(server: Server) -> set[str]:
    return {path.name for path in Places(server.home).snapshots.iterdir() if path.name != ".mounted"}


@pytest.mark.timeout(120 + 15 * ROUNDS)
def test_killed_in_the_middle_of_state(server: Server, api: Api) -> None:
    chance = random.Random(6)
    box = api.create(timeout=None)["id"]
    api.run(box, "echo 0 > /round; head -c 20000000 /dev/urandom > /data; sha256sum /data > /sum")
    api.ok("POST", f"/v1/sandboxes/{box}/checkpoints", status=201, json={"name": "start"})
    kept: dict[str, str] = {}
    for round in range(ROUNDS):
        # A writer that must never stay stopped.
        written, _, _ = api.run(box, f"echo {round} > /round; head -c 5000000 /dev/urandom > /noise; cat /round")
        assert written == f"{round}\n".encode()
        before = {one["id"] for one in api.ok("GET", "/v1/snapshots", params={"sandbox": box})["snapshots"]}
        assert before == set(kept)
        match round % 3:
            case 0:
                killed_in_the_middle(server, chance, lambda api: api.ok("POST", f"/v1/sandboxes/{box}/snapshots", status=201, json={}))
                for one in {one["id"] for one in api.ok("GET", "/v1/snapshots", params={"sandbox": box})["snapshots"]} - before:
                    kept[one] = f"{round}\n"
            case 1:
                doomed = next(iter(kept), None)
                if doomed is not None and killed_in_the_middle(server, chance, lambda api, doomed=doomed: api.ok("DELETE", f"/v1/snapshots/{doomed}")):
                    api.refused("not_found", "GET", f"/v1/snapshots/{doomed}")
                kept = {one["id"]: kept[one["id"]] for one in api.ok("GET", "/v1/snapshots", params={"sandbox": box})["snapshots"]}
            case _:
                killed_in_the_middle(server, chance, lambda api: api.ok("POST", f"/v1/sandboxes/{box}/rewind", json={"checkpoint": "start"}))
                if api.ok("GET", f"/v1/sandboxes/{box}")["state"] == "stopped":
                    api.ok("POST", f"/v1/sandboxes/{box}/start")
                assert api.run(box, "cat /round; sha256sum -c /sum")[0] in (f"{round}\n/data: OK\n".encode(), b"0\n/data: OK\n")
        # Nothing half made, nothing lost.
        documents = {name.removesuffix(".json") for name in on_disk(server) if name.endswith(".json")}
        checkpoints = {one["id"] for one in api.ok("GET", f"/v1/sandboxes/{box}/checkpoints")["checkpoints"]}
        assert set(kept) | checkpoints <= documents
        assert on_disk(server) == {f"{id}{suffix}" for id in documents for suffix in (".json", ".img")}
    for id, said in kept.items():
        child = api.create(image=id)["id"]
        assert api.run(child, "cat /round; sha256sum -c /sum")[0] == f"{said}/data: OK\n".encode()
        api.delete(child)
        api.ok("DELETE", f"/v1/snapshots/{id}")
    api.delete(box)


def test_a_frozen_disk_thaws_when_the_server_is_killed(server: Server, api: Api, tmp_path: Path) -> None:
    """The server is killed while it holds a disk still. Its heir lets the writers go on before another server is there."""
    import subprocess
    import sys

    box = api.create(timeout=None)["id"]
    mounted = Places(server.home).run / "disks" / box / "m"
    started = tmp_path / "still"
    holding = f"import sys, time; from pathlib import Path; from corral.node import capture; capture.LONGEST = 600\ndef copy(): Path({str(started)!r}).touch(); time.sleep(600)\ncapture.capture(Path({str(mounted)!r}), copy)"
    process = subprocess.Popen([sys.executable, "-c", holding], stdin=subprocess.DEVNULL)
    while not started.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert api.run(box, "echo on > /file; cat /file")[0] == b"on\n"
    api.delete(box)
