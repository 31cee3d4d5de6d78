"""Forks of running sandboxes: everything in them goes on in each, by itself, and nobody in the source notices."""

from __future__ import annotations

import threading
import uuid

import pytest

from corral import Process, Sandbox
from corral.errors import Conflict, CorralError, SandboxEnded
from harness.server import Server
from harness.site import Site, read_until

HOOK = """#!/bin/sh
echo "$(hostname) $OWN" >> /var/tmp/hooked
pkill -USR2 -f dice.py
"""
DICE = """
import random, signal, sys
random.seed(7)
signal.signal(signal.SIGUSR2, lambda *_: random.seed())
print("ready", flush=True)
for line in sys.stdin:
    print(random.random(), flush=True)
"""


def say(process: Process[str], line: str) -> str:
    process.stdin.write(line + "\n")
    return next(iter(process.stdout))


def test_a_server_with_a_database_and_a_terminal_forks_eight_ways(server: Server) -> None:
    with Sandbox.create("base") as box:
        site = Site(box)
        assert [site.ask() for _ in range(3)] == [1, 2, 3]
        terminal = box.exec("sh", pty=True)
        terminal.stdin.write("cd /tmp; x=kept; echo $x > file; tty\n")
        read_until(terminal, "/dev/pts")
        stop, seen = threading.Event(), list[int]()

        def client() -> None:
            while not stop.is_set():
                seen.append(site.ask())

        asking = threading.Thread(target=client)
        asking.start()
        kids = list(box.fork(8))
        stop.set()
        asking.join()
        try:
            # No client of the source noticed.
            assert seen == list(range(4, 4 + len(seen)))
            counts = [Site(kid, running=True).ask() for kid in kids]
            shells = [kid.process(terminal.id) for kid in kids]
            for number, (kid, shell) in enumerate(zip(kids, shells, strict=True)):
                shell.stdin.write(f"echo {number}-$x-$(cat file)-$PWD\n")
                read_until(shell, f"{number}-kept-kept-/tmp")
                kid.run(f"echo {number} > /var/tmp/mine")
            assert [kid.run("cat /var/tmp/mine").stdout for kid in kids] == [f"{number}\n" for number in range(8)]
            assert box.run("cat /var/tmp/mine").exit_code == 1
            assert len({kid.run("cat /proc/sys/kernel/random/boot_id").stdout for kid in [box, *kids]}) == 9
            assert len({kid.run("hostname").stdout for kid in [box, *kids]}) == 9
            # Data goes its own way from the same moment on.
            assert len(set(counts)) == 1
            assert [Site(kid, running=True).ask() for kid in kids] == [count + 1 for count in counts]
            terminal.stdin.write("echo still-$x\n")
            read_until(terminal, "still-kept")
            grandchild = kids[0].fork()[0]
            kids.append(grandchild)
            assert Site(grandchild, running=True).ask() == counts[0] + 2
            assert grandchild.info.forked_from == kids[0].id
            # Paused and resumed, a fork is like any other.
            kids[1].pause()
            assert Site(kids[1], running=True).ask() == counts[1] + 2
        finally:
            for kid in kids:
                kid.delete()


def test_each_fork_is_somebody_of_its_own(server: Server) -> None:
    with Sandbox.create("base", user="root", env={"OWN": "source"}) as box:
        box.run("mkdir -p /etc/corral/fork.d; echo 0123456789abcdef0123456789abcdef > /etc/machine-id").check()
        box.files.write("/etc/corral/fork.d/reseed", HOOK, mode=0o755)
        box.files.write("/etc/corral/fork.d/broken", "#!/bin/sh\necho no luck; exit 3\n", mode=0o755)
        box.files.write("/var/tmp/dice.py", DICE)
        dice = box.exec("python3", "/var/tmp/dice.py")
        assert next(iter(dice.stdout)) == "ready\n"
        name = f"own-{uuid.uuid4().hex[:8]}"
        kids = box.fork([{"name": name, "env": {"OWN": "first"}, "tags": {"a": "1"}}, {}])
        try:
            assert [kid.run("cat /var/tmp/hooked; echo $OWN").stdout for kid in kids] == [
                f"{name} first\nfirst\n",
                f"{kids[1].id} source\nsource\n",
            ]
            assert len({kid.run("cat /etc/machine-id").stdout for kid in [box, *kids]}) == 3
            rolling = [dice, *(kid.process(dice.id) for kid in kids)]
            assert [next(iter(process.stdout)) for process in rolling[1:]] == ["ready\n"] * 2
            assert len({say(process, "roll") for process in rolling}) == 3
            told = next(iter(kids[1].events(kind="fork.hook_failed")))
            assert "broken: exit status 3: no luck" in told.data["why"]
            assert kids[0].tags == {"a": "1"}
            with pytest.raises(Conflict, match=name):
                box.fork([{"name": name}])
            assert box.run("cat /var/tmp/hooked").exit_code == 1
        finally:
            for kid in kids:
                kid.delete()


def test_a_fork_that_cannot_be_made_harms_no_other(server: Server) -> None:
    with Sandbox.create("tiny") as box:
        process = box.exec("cat")
        process.stdin.write("in the pipe\n")
        assert next(iter(process.stdout)) == "in the pipe\n"
        with pytest.raises(CorralError):
            box.fork([{}, {"egress": {"rules": [{"to": ["example.com"], "inject": [{"header": "x", "secret": "there-is-none"}]}]}}])
        assert say(process, "source") == "source\n"


def test_the_source_may_be_paused_and_not_stopped(server: Server) -> None:
    with Sandbox.create("tiny") as box:
        process = box.exec("cat")
        assert say(process, "before") == "before\n"
        box.pause()
        [kid] = box.fork()
        try:
            copy = kid.process(process.id)
            assert say(copy, "child") == "before\n"
            assert next(iter(copy.stdout)) == "child\n"
            assert say(process, "source") == "source\n"
        finally:
            kid.delete()
        box.stop()
        with pytest.raises(CorralError, match="can't be forked"):
            box.fork()
    with pytest.raises(SandboxEnded):
        box.fork()


def test_who_has_done_much_is_forked_again_and_again(server: Server) -> None:
    """What a sentry goes through when it writes its memory down stays in its own heap: more, after some times, than its sandbox may use otherwise."""
    much = "n=0; while [ $n -lt 300 ]; do /bin/true; n=$((n+1)); done; mkdir /t; cd /t; n=0; while [ $n -lt 3000 ]; do echo $n > f$n; n=$((n+1)); done"
    with Sandbox.create("tiny", memory=64) as box:
        box.run(much).check()
        for _ in range(3):
            for kid in box.fork(1):
                kid.terminate()
        assert box.run("echo alive").stdout == "alive\n"
