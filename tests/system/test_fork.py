"""Forks of running sandboxes: everything in them goes on in each, by itself, and nobody in the source notices."""

from __future__ import annotations

import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from corral import Egress, Process, Sandbox, Secret, Volume
from corral.errors import Conflict, CorralError, InvalidArgument, NotFound, SandboxEnded
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


SINK = r"""
import socket, threading
def swallow(connection):
    while connection.recv(65536): pass
server = socket.create_server(("127.0.0.1", 9000))
print("ready", flush=True)
while True:
    threading.Thread(target=swallow, args=(server.accept()[0],), daemon=True).start()
"""


def dial(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=60)


@contextmanager
def now_and_then(*deeds: Callable[[], object]) -> Iterator[None]:
    """Each is done ten times a second, by a thread of its own, for as long as this lasts. None may fail."""
    stop, failed = threading.Event(), list[BaseException]()

    def again(deed: Callable[[], object]) -> None:
        try:
            while not stop.wait(0.1):
                deed()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=again, args=(deed,)) for deed in deeds]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failed == []


@pytest.mark.parametrize("way", ["control", "ports"])
def test_one_that_is_being_used_is_forked_whole(server: Server, way: str) -> None:
    """gVisor 20240729 takes packets for the agent while it writes itself down; one that came in the middle of that made forks that never heard of a packet again."""
    with Sandbox.create("base", memory=512) as box:
        swallow = box.exec("sh", "-c", "cat > /dev/null")
        sink = box.exec("python3", "-c", SINK)
        assert next(iter(sink.stdout)) == "ready\n"
        with box.tunnel(9000) as tunnel, dial(tunnel.address) as connection:
            use = {"control": lambda: swallow.stdin.write("x"), "ports": lambda: connection.sendall(b"x")}[way]
            with now_and_then(use):
                for _ in range(15):
                    with box.fork()[0] as kid:
                        assert kid.run("echo heard").check().stdout == "heard\n"
                        with kid.tunnel(9000) as other, dial(other.address) as fresh:
                            fresh.shutdown(socket.SHUT_WR)
                            assert fresh.recv(1) == b""
            # And the source's own connection has gone on.
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == b""


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


ECHO = """
import socketserver
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line)
server = socketserver.ThreadingTCPServer(("127.0.0.1", 9000), Handler)
print("listening", flush=True)
server.serve_forever()
"""


def test_who_is_connected_from_outside_stays_so(server: Server) -> None:
    with Sandbox.create("base") as box:
        echo = box.exec("python3", "-c", ECHO)
        assert next(iter(echo.stdout)) == "listening\n"
        with box.tunnel(9000) as tunnel, socket.create_connection((tunnel.host, tunnel.port), timeout=60) as line, line.makefile("rb") as answers:
            forked = threading.Event()
            asked = 0

            def fork() -> None:
                try:
                    kids.extend(box.fork(2))
                finally:
                    forked.set()

            kids: list[Sandbox] = []
            forking = threading.Thread(target=fork)
            forking.start()
            # One connection, asked without a pause before, while and after it is forked.
            while not forked.is_set() or asked < 50:
                asked += 1
                line.sendall(b"%d\n" % asked)
                assert answers.readline() == b"%d\n" % asked
            forking.join()
            assert len(kids) == 2
            try:
                for kid in kids:
                    with kid.tunnel(9000) as theirs, socket.create_connection((theirs.host, theirs.port), timeout=60) as other:
                        other.sendall(b"kid\n")
                        assert other.recv(100) == b"kid\n"
                line.sendall(b"still\n")
                assert answers.readline() == b"still\n"
            finally:
                for kid in kids:
                    kid.delete()


WRITER = """
import sys
with open("/data/log", "a", buffering=1) as log:
    print("ready", flush=True)
    for line in sys.stdin:
        log.write(line)
        print("wrote", flush=True)
"""


def test_each_fork_has_the_volumes_that_it_is_given(server: Server) -> None:
    mark = uuid.uuid4().hex[:8]
    shared, only = Volume.create(f"v-{mark}", size=64), Volume.create(f"r-{mark}", size=64)
    copies = list[Volume]()
    with Sandbox.create("base", volumes={"/data": shared, "/only": only}) as box:
        box.run("echo here > /only/file").check()
        writer = box.exec("python3", "-c", WRITER)
        assert next(iter(writer.stdout)) == "ready\n"
        assert say(writer, "source") == "wrote\n"
        copies = [shared.clone(f"v-{mark}-copy")]
        with pytest.raises(InvalidArgument, match="/nothing"):
            box.fork([{"volumes": {"/nothing": copies[0]}}])
        with pytest.raises(NotFound):
            box.fork([{"volumes": {"/data": "there-is-none"}}])
        kids = list(box.fork([{}, {"volumes": {"/data": copies[0], "/only": Volume.named(only.name, read_only=True)}}]))
        try:
            assert kids[0].info.volumes == box.info.volumes
            assert {path: one.volume for path, one in kids[1].info.volumes.items()} == {"/data": copies[0].id, "/only": only.id}
            # What was open goes on, each where it belongs.
            writers = [kid.process(writer.id) for kid in kids]
            for number, process in enumerate(writers):
                assert [next(iter(process.stdout)) for _ in range(2)] == ["ready\n", "wrote\n"]
                assert say(process, f"kid {number}") == "wrote\n"
            assert say(writer, "source again") == "wrote\n"
            assert shared.files.read_text("log") == "source\nkid 0\nsource again\n"
            assert copies[0].files.read_text("log") == "source\nkid 1\n"
            assert kids[1].run("cat /only/file; echo x > /only/file || echo refused").stdout == "here\nrefused\n"
            # It keeps them over all that may come.
            kids[1].pause()
            assert say(writers[1], "woken") == "wrote\n"
            [grandchild] = kids[1].fork()
            kids.append(grandchild)
            assert grandchild.run("cat /data/log").stdout == "source\nkid 1\nwoken\n"
            kids[1].stop()
            kids[1].start()
            assert kids[1].run("cat /data/log").stdout == "source\nkid 1\nwoken\n"
            kids[1].detach("/data")
            assert kids[1].run("ls -A /data").stdout == ""
        finally:
            for kid in kids:
                kid.delete()
    for volume in (shared, only, *copies):
        volume.delete()


def test_each_fork_has_its_own_secrets_and_keys(server: Server) -> None:
    mark = f"S{uuid.uuid4().hex[:8]}"
    for name in (f"{mark}_A", f"{mark}_B"):
        Secret.create(name, f"value of {name}")
    with Sandbox.create("base", user="root", secrets=[Secret.named(f"{mark}_A", expose=True, env="TOKEN")]) as box:
        box.run("mkdir -p /etc/ssh; echo mine > /etc/ssh/ssh_host_ed25519_key; echo mine > /etc/ssh/ssh_host_ed25519_key.pub").check()
        other = Secret.named(f"{mark}_B", expose=True, env="TOKEN")
        kids = box.fork([{}, {"secrets": [other], "egress": Egress.none()}, {"secrets": []}])
        try:
            assert [kid.run("echo $TOKEN").stdout for kid in kids] == [f"value of {mark}_A\n", f"value of {mark}_B\n", "\n"]
            assert kids[1].info.egress.default == "none"
            # None has what the other was given, anywhere.
            assert kids[0].run(f"env | grep {mark}_B; cat /proc/[0-9]*/environ | grep -a {mark}_B").stdout == ""
            assert box.run("echo $TOKEN; cat /etc/ssh/ssh_host_ed25519_key").stdout == f"value of {mark}_A\nmine\n"
            for kid in kids:
                assert "mine" not in kid.run("cat /etc/ssh/ssh_host_ed25519_key*").stdout
        finally:
            for kid in kids:
                kid.delete()
    for name in (f"{mark}_A", f"{mark}_B"):
        Secret.delete(name)


def test_who_has_done_much_is_forked_again_and_again(server: Server) -> None:
    """What a sentry goes through when it writes its memory down stays in its own heap: more, after some times, than its sandbox may use otherwise."""
    much = "n=0; while [ $n -lt 300 ]; do /bin/true; n=$((n+1)); done; mkdir /t; cd /t; n=0; while [ $n -lt 3000 ]; do echo $n > f$n; n=$((n+1)); done"
    with Sandbox.create("tiny", memory=64) as box:
        box.run(much).check()
        for _ in range(3):
            for kid in box.fork(1):
                kid.terminate()
        assert box.run("echo alive").stdout == "alive\n"
