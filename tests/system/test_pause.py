"""Pausing with memory: what a paused sandbox is, what goes on when it is resumed, and what is left when the server is killed in between."""

from __future__ import annotations

import re
import shutil
import threading
import uuid

import pytest

from corral import Sandbox, Volume
from corral.errors import InvalidState, SandboxEnded, Unsupported
from corral.node.runsc import probe
from corral.places import Places
from harness import leaks
from harness.server import Server
from harness.site import Site, read_until

COMPUTE = r"""
import hashlib, sys
digest = b"seed"
for step in range(600):
    for _ in range(3000):
        digest = hashlib.sha256(digest).digest()
    print(step, digest.hex(), flush=True)
"""


def computed() -> str:
    import hashlib

    digest = b"seed"
    lines: list[str] = []
    for step in range(600):
        for _ in range(3000):
            digest = hashlib.sha256(digest).digest()
        lines.append(f"{step} {digest.hex()}\n")
    return "".join(lines)


def test_a_computation_goes_on_after_a_pause_and_a_restart_of_the_server(server: Server) -> None:
    with Sandbox.create("base") as box:
        process = box.exec("python3", "-c", COMPUTE)
        lines = iter(process.stdout)
        first = [next(lines) for _ in range(20)]
        box.pause()
        assert box.info.state == "paused"
        # Nothing of the host but files.
        assert [trace for trace in leaks.of_sandboxes(Places(server.home)).get(box.id, []) if not trace.startswith("file ")] == []
        server.kill()
        server.start()
        assert box.refresh().state == "paused"
        codes: list[int | None] = []
        waiting = threading.Thread(target=lambda: codes.append(process.wait(timeout=120)))
        waiting.start()
        box.resume()
        assert "".join(first + list(lines)) == computed()
        waiting.join(timeout=120)
        assert codes == [0]


WHEEL = r"""
import zipfile
with zipfile.ZipFile("/var/tmp/many-1.0-py3-none-any.whl", "w") as wheel:
    for number in range(1500):
        wheel.writestr(f"many/m{number}.py", f"VALUE = {number}\n" + "".join(f"def f{i}(a, b={i}):\n    return [a, b, {i}]\n" for i in range(20)))
    wheel.writestr("many/__init__.py", "")
    wheel.writestr("many-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: many\nVersion: 1.0\n")
    wheel.writestr("many-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    wheel.writestr("many-1.0.dist-info/RECORD", "")
"""


def test_a_pip_install_goes_on_after_a_pause_and_a_restart_of_the_server(server: Server) -> None:
    with Sandbox.create("base", memory=1024) as box:
        box.run(["python3", "-c", WHEEL], timeout=60).check()
        box.run("python3 -m venv /var/tmp/env", timeout=120).check()
        pip = box.exec("/var/tmp/env/bin/pip", "install", "--no-index", "--find-links", "/var/tmp", "many")
        seen = ""
        lines = iter(pip.stdout)
        while "Installing collected packages" not in seen:
            seen += next(lines)
        box.pause()
        server.kill()
        server.start()
        assert box.refresh().state == "paused"
        box.resume()
        seen += "".join(lines)
        assert pip.wait(timeout=120) == 0
        assert "Successfully installed many-1.0" in seen
        assert pip.stderr.read() == ""
        # The same to whoever reads it now, from its first byte.
        assert box.process(pip.id).stdout.read() == seen
        look = "import importlib; print(sum(importlib.import_module(f'many.m{n}').VALUE for n in range(1500)))"
        assert box.run(["/var/tmp/env/bin/python", "-c", look], timeout=120).stdout == f"{sum(range(1500))}\n"


def test_servers_terminals_timers_and_files_go_on(server: Server) -> None:
    with Sandbox.create("base") as box:
        site = Site(box)
        assert [site.ask() for _ in range(3)] == [1, 2, 3]
        terminal = box.exec("sh", pty=True)
        terminal.stdin.write("cd /tmp; x=kept; echo $x > file; tty\n")
        sleeper = box.exec("sh", "-c", "sleep 2; exit 7")
        read_until(terminal, "/dev/pts")
        box.pause()
        # The next use resumes it.
        assert site.ask() == 4
        assert box.refresh().state in ("running", "frozen")
        terminal.stdin.write("echo $x-$(cat file)-$PWD\n")
        read_until(terminal, "kept-kept-/tmp")
        assert sleeper.wait(timeout=60) == 7


def test_looking_does_not_wake_it(server: Server) -> None:
    with Sandbox.create("tiny") as box:
        process = box.exec("sh", "-c", "echo one; read line; echo $line")
        assert next(iter(process.stdout)) == "one\n"
        box.pause()
        assert [one.id for one in box.processes()] == [process.id]
        assert box.refresh().state == "paused"
        with pytest.raises(InvalidState, match="paused"):
            box.metrics()
        process.stdin.write("two\n")
        assert process.wait(timeout=60) == 0
        assert process.stdout.read() == "two\n"


def test_a_paused_one_can_be_stopped_and_ended(server: Server) -> None:
    places = Places(server.home)
    with Sandbox.create("tiny") as box:
        process = box.exec("sleep", "1000")
        box.run("echo kept > /kept")
        box.pause()
        box.stop()
        assert not (places.memory / box.id).exists()
        with pytest.raises(SandboxEnded):
            process.wait(timeout=60)
        box.start()
        assert box.run("cat /kept").stdout == "kept\n"
        box.pause()
    assert not (places.memory / box.id).exists()
    assert list(places.paused.iterdir()) == []


def test_what_cannot_be_saved_is_named_and_goes_on(server: Server) -> None:
    with Sandbox.create("base") as box:
        held = "import time; f = open('/var/tmp/held', 'w'); import os; os.unlink('/var/tmp/held'); print('held', flush=True); time.sleep(1000)"
        process = box.exec("python3", "-c", held)
        assert next(iter(process.stdout)) == "held\n"
        try:
            box.pause()
        except Unsupported as error:
            assert "python3" in error.message
            assert "/var/tmp/held" in error.message
            assert error.details["obstacles"][0]["process"] == "python3"
            assert box.refresh().state in ("running", "frozen")
            process.signal(9)
            process.wait(timeout=60)
            box.pause()
        assert box.run("echo alive").stdout == "alive\n"


def test_it_comes_back_with_the_engine_that_it_was_saved_with(server: Server, shared: Places) -> None:
    there = [*shared.engines.glob("*/runsc"), *shared.home.parent.glob("recent/runsc")]
    with Sandbox.create("tiny") as box:
        process = box.exec("cat")
        process.stdin.write("before\n")
        assert next(iter(process.stdout)) == "before\n"
        box.pause()
        told = str(box.info.detail)
        others = [runsc for path in there if (runsc := probe(path)).version not in told]
        if not others:
            pytest.skip("there is only one runsc on this machine")
        kept = Places(server.home).engines / re.sub(r"[^A-Za-z0-9.-]", "_", others[0].version)
        server.kill()
        server.start("--runsc", str(others[0].path))
        try:
            process.stdin.write("after\n")
            assert next(iter(process.stdout)) == "after\n"
            # One that begins now is of the engine in use.
            with Sandbox.create("tiny") as fresh:
                fresh.pause()
                assert others[0].version in str(fresh.info.detail)
                fresh.resume()
            box.pause()
            assert box.info.detail == told
        finally:
            server.kill()
            shutil.rmtree(kept, ignore_errors=True)
            server.start()
        box.resume()
        process.stdin.write("again\n")
        assert next(iter(process.stdout)) == "again\n"


def test_a_deleted_file_of_a_volume_is_named_and_goes_on(server: Server) -> None:
    volume = Volume.create(f"held-{uuid.uuid4().hex[:8]}", size=64)
    held = "import os, sys; f = open('/data/held', 'w+'); os.unlink('/data/held'); m = open('/tmp/memory', 'w'); os.unlink('/tmp/memory'); print('held', flush=True); sys.stdin.readline(); f.write('on'); f.seek(0); print(f.read(), flush=True)"
    with Sandbox.create("base", volumes={"/data": volume}) as box:
        process = box.exec("python3", "-c", held)
        assert next(iter(process.stdout)) == "held\n"
        for deed in (box.pause, box.fork):
            try:
                deed()
            except Unsupported as error:
                assert [(one["kind"], one["process"], one["what"]) for one in error.details["obstacles"]] == [("deleted_file", "python3", "/data/held")]
                assert "close the file" in str(error.hint)
                assert box.refresh().state in ("running", "frozen")
        for kid in [kid for kid in Sandbox.list() if kid.info.forked_from == box.id]:
            kid.delete()
        process.stdin.write("\n")
        assert next(iter(process.stdout)) == "on\n"
        assert process.wait(timeout=60) == 0
        box.pause()
        assert box.run("ls -A /data").stdout == ""
    volume.delete()


def test_a_sandbox_whose_time_is_up_pauses_if_it_is_to(server: Server) -> None:
    with Sandbox.create("tiny", idle_timeout=1, on_timeout="pause", timeout=None) as box:
        box.run("echo kept > /tmp/in-memory")
        paused = next(iter(box.events(kind="sandbox.paused", follow=True)))
        assert paused.data["reason"] == "idle"
        assert box.run("cat /tmp/in-memory").stdout == "kept\n"


def test_a_connection_to_another_machine_is_named_and_stays(server: Server) -> None:
    with Sandbox.create("base") as box:
        connect = "import re, socket, sys; s = socket.create_connection((re.search(r'nameserver (.*)', open('/etc/resolv.conf').read())[1], 53)); print('up', flush=True); sys.stdin.readline(); s.send(b'x'); print('still', flush=True)"
        process = box.exec("python3", "-c", connect)
        assert next(iter(process.stdout)) == "up\n"
        for deed in (box.pause, box.fork):
            with pytest.raises(Unsupported, match=r"python3.*connection"):
                deed()
        process.stdin.write("\n")
        assert process.stdout.read() == "still\n"
        box.pause()
        assert box.run("echo alive").stdout == "alive\n"
