"""The server may be killed at any moment: sandboxes, processes and output go on, and what is gone is gone without a trace."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from corral import Sandbox
from corral.places import Places
from harness import leaks
from harness.api import Api
from harness.server import Server

COUNT = "i=0; while [ $i -lt {n} ]; do echo line $i; i=$((i+1)); done"


def expected(n: int) -> str:
    return "".join(f"line {i}\n" for i in range(n))


def test_input_that_nobody_has_read_yet_outlives_a_killed_server(server: Server) -> None:
    with Sandbox.create("tiny") as box:
        process = box.exec("sh", "-c", "mkfifo /tmp/go && echo ready && cat /tmp/go && md5sum")
        assert process.stdout.readline() == "ready\n"
        stdin = f"/v1/sandboxes/{box.id}/processes/{process.id}/stdin"
        # More than a pipe holds, so that some of it waits with the guest agent.
        begun = bytes(range(250)) * 800
        api = Api(server)
        assert api.ok("POST", stdin, content=begun)["offset"] == len(begun)
        server.kill()
        server.start()
        assert api.ok("POST", f"{stdin}?eof=true", content=b"and its end")["offset"] == len(begun) + 11
        api.close()
        box.run("echo go > /tmp/go").check()
        assert process.stdout.read().split()[:2] == ["go", hashlib.md5(begun + b"and its end").hexdigest()]
        assert process.wait(timeout=60) == 0


def test_ten_sandboxes_outlive_a_killed_server_and_every_byte_arrives(server: Server) -> None:
    boxes = [Sandbox.create("tiny") for _ in range(10)]
    try:
        # Slow enough to be in the middle of it when the server is killed, and more than a socket's buffer holds.
        processes = [box.exec("sh", "-c", COUNT.format(n=20_000)) for box in boxes]
        waiting = [box.exec("cat") for box in boxes]
        for process in waiting:
            process.stdin.write("before ")
        texts: dict[int, str] = {}
        started = threading.Barrier(len(boxes) + 1)

        def read(number: int) -> None:
            lines = iter(processes[number].stdout)
            text = next(lines)
            started.wait()
            texts[number] = text + "".join(lines)

        readers = [threading.Thread(target=read, args=(number,)) for number in range(len(boxes))]
        for reader in readers:
            reader.start()
        started.wait()
        server.kill()
        server.start()
        for reader in readers:
            reader.join(timeout=120)
        assert [texts[number] == expected(20_000) for number in range(len(boxes))] == [True] * len(boxes)
        assert [process.wait(timeout=60) for process in processes] == [0] * len(boxes)
        for process in waiting:
            process.stdin.write("after")
            process.stdin.close()
        assert [process.stdout.read() for process in waiting] == ["before after"] * len(boxes)
        assert [box.run("echo alive").stdout for box in boxes] == ["alive\n"] * len(boxes)
    finally:
        for box in boxes:
            box.delete()


def test_a_reader_that_comes_after_the_restart_gets_everything_from_its_offset(server: Server) -> None:
    with Sandbox.create("tiny") as box:
        process = box.exec("sh", "-c", COUNT.format(n=3000) + "; sleep 1; exit 5")
        for line in process.stdout:
            if line == "line 100\n":
                break
        server.kill()
        server.start()
        again = Sandbox.get(box.id).process(process.id)
        assert again.stdout.read() == expected(3000)
        assert again.wait(timeout=60) == 5


def test_two_hundred_sandboxes_leave_nothing(server: Server) -> None:
    places = Places(server.home)
    before = set(leaks.of_sandboxes(places))
    for _ in range(40):
        batch = [Sandbox.create("tiny") for _ in range(5)]
        assert all(box.run("true").exit_code == 0 for box in batch)
        for box in batch:
            box.delete()
    assert set(leaks.of_sandboxes(places)) <= before


def sentry_of(server: Server, box: Sandbox) -> int:
    return json.loads((Places(server.home).boxes / f"{box.id}.json").read_text())["identity"]["pid"]


def start_again_after_kill(box: Sandbox, sentry: int) -> None:
    os.kill(sentry, signal.SIGKILL)
    for event in box.events(follow=True):
        if event.kind == "sandbox.stopped":
            break
    box.refresh()
    assert (box.state, box.reason) == ("stopped", "killed")
    box.start()


def test_a_sandbox_killed_while_it_is_frozen_is_stopped_too(server: Server) -> None:
    with Sandbox.create("tiny") as box:
        sentry = sentry_of(server, box)
        if not _stopped_within(sentry, seconds=10):
            pytest.skip("this runsc burns no processor time when idle, so nothing is frozen")
        start_again_after_kill(box, sentry)
        assert box.run("true").exit_code == 0


def _stopped_within(pid: int, *, seconds: float) -> bool:
    """Whether a process is stopped by a signal. Nothing tells of it, so this looks again and again."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
            return True
        time.sleep(0.05)
    return False


def test_a_crashed_sandbox_is_stopped_with_its_disk_and_can_be_started_again(server: Server) -> None:
    with Sandbox.create("tiny") as box:
        box.files.write("/kept", b"kept")
        start_again_after_kill(box, sentry_of(server, box))
        assert box.files.read("/kept") == b"kept"
