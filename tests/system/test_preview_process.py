"""The preview process and the server end and start apart from each other."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from corral import Result, Sandbox
from corral.errors import Conflict
from corral.places import Places
from harness import web
from harness.holder import holder_of
from harness.server import Server, free_port
from harness.web import Wire, wire


def edge_of(box: Sandbox) -> tuple[int, str]:
    parts = urlsplit(box.preview(8000).url)
    assert parts.port is not None
    return parts.port, parts.netloc


def test_connections_outlive_the_server_and_the_server_outlives_the_process(server: Server) -> None:
    with Sandbox.create("base") as box:
        process = box.exec("python3", "-c", web.SERVER, box.id, "8000")
        assert process.stdout.readline() == "listening\n"
        port, host = edge_of(box)
        token = f"Corral-Token: {box.preview_token()}"
        with wire(port) as kept, wire(port) as upgraded:
            first = kept.ask("GET", "/", host, token).json
            assert upgraded.ask("GET", "/ws", host, token, "Connection: Upgrade", "Upgrade: websocket").status == 101
            server.kill()
            upgraded.say(b"without a server")
            assert upgraded.some(16) == b"without a server"
            assert kept.ask("GET", "/", host, token).json["peer"] == first["peer"]
            server.start()
            upgraded.say(b"with another")
            assert upgraded.some(12) == b"with another"
            assert kept.ask("GET", "/", host, token).json["peer"] == first["peer"]
            assert edge_of(box) == (port, host)

            pid_file = Places(server.home).preview_pid
            pid = int(pid_file.read_text())
            os.kill(pid, signal.SIGKILL)
            assert box.run("echo the API goes on").stdout == "the API goes on\n"
        deadline = time.monotonic() + 60
        while True:
            try:
                with wire(port) as line:
                    assert line.ask("GET", "/", host, token).json["me"] == box.id
                break
            except OSError:
                assert time.monotonic() < deadline, "no other preview process has come"
        assert int(pid_file.read_text()) != pid


UPGRADE = ("Connection: Upgrade", "Upgrade: websocket")


def echoes(line: Wire, word: bytes) -> bool:
    line.say(word)
    return line.some(len(word)) == word


def test_connections_go_on_when_their_sandbox_was_paused(server: Server) -> None:
    with Sandbox.create("base") as box:
        process = box.exec("python3", "-c", web.SERVER, box.id, "8000")
        assert process.stdout.readline() == "listening\n"
        port, host = edge_of(box)
        token = f"Corral-Token: {box.preview_token()}"
        with wire(port) as upgraded, wire(port) as kept, wire(port) as events, box.tunnel(8000) as tunnel, wire(tunnel.port) as through:
            assert upgraded.ask("GET", "/ws", host, token, *UPGRADE).status == 101
            assert through.ask("GET", "/ws", host, *UPGRADE).status == 101
            first = kept.ask("GET", "/", host, token).json
            events.say(f"GET /wait HTTP/1.1\r\nHost: {host}\r\n{token}\r\n\r\n".encode())
            told = b""
            while not told.endswith(b"data: 0\n\n"):
                told += events.some(1)
            box.pause()
            assert box.refresh().state == "paused", "an open connection alone wakes nobody"
            assert echoes(upgraded, b"who speaks wakes it")
            assert box.refresh().state in ("running", "frozen")
            # Nobody says anything when it comes back by another server.
            box.pause()
            server.kill()
            server.start()
            box.resume()
            assert echoes(through, b"through the tunnel")
            assert kept.ask("GET", "/go-on", host, token).status == 204
            assert events.rest() == b"data: 1\n\n"
            assert kept.ask("GET", "/", host, token).json["peer"] == first["peer"]
            # A fork has connections of its own, and takes none of these.
            [child] = box.fork(1)
            with child:
                assert echoes(upgraded, b"forked")
                child_port, child_host = edge_of(child)
                with wire(child_port) as theirs:
                    assert theirs.ask("GET", "/", child_host, f"Corral-Token: {child.preview_token()}").status == 200
            upgraded.socket.shutdown(socket.SHUT_WR)
            assert upgraded.rest() == b"bye"
            box.pause()
            box.delete()
            with pytest.raises(ConnectionResetError):
                through.rest()


def test_requests_that_come_while_a_sandbox_is_forked_or_paused_are_answered(server: Server) -> None:
    with Sandbox.create("base") as box:
        process = box.exec("python3", "-c", web.SERVER, box.id, "8000")
        assert process.stdout.readline() == "listening\n"
        port, host = edge_of(box)
        token = f"Corral-Token: {box.preview_token()}"
        done = threading.Event()
        told: set[tuple[int, str | None]] = set()

        def ask() -> None:
            while not done.is_set():
                with wire(port) as line:
                    answer = line.ask("GET", "/", host, token)
                    told.add((answer.status, answer.code))

        def fork() -> None:
            for child in box.fork(1):
                child.delete()

        for change in (fork, box.pause, box.pause, box.pause):
            done.clear()
            asking = threading.Thread(target=ask)
            asking.start()
            try:
                change()
            finally:
                done.set()
                # One that was read inside just before has its answer when it goes on: whoever waits for an answer wakes nobody.
                box.resume()
                asking.join()
        assert told == {(200, None)}


def test_no_byte_is_lost_or_said_twice_when_a_sandbox_is_paused(server: Server) -> None:
    with Sandbox.create("base") as box:
        process = box.exec("python3", "-c", web.SERVER, box.id, "8000")
        assert process.stdout.readline() == "listening\n"
        port, host = edge_of(box)
        data = os.urandom(24 << 20)
        with wire(port) as line:
            assert line.ask("GET", "/ws", host, f"Corral-Token: {box.preview_token()}", *UPGRADE).status == 101
            said = threading.Event()

            def say() -> None:
                for at in range(0, len(data), 1 << 20):
                    line.say(data[at : at + (1 << 20)])
                    if at == 4 << 20:
                        said.set()
                line.socket.shutdown(socket.SHUT_WR)

            saying = threading.Thread(target=say)
            saying.start()
            # Nobody reads yet: both directions are full of what nobody has taken.
            assert line.some(1 << 20) == data[: 1 << 20]
            box.pause()
            assert line.some(4 << 20) == data[1 << 20 : 5 << 20]
            said.wait()
            box.pause()
            box.resume()
            box.pause()
            assert line.rest() == data[5 << 20 :] + b"bye"
            saying.join()


def test_a_tunnel_is_one_whatever_happens_on_its_way(server: Server) -> None:
    with Sandbox.create("base") as box:
        process = box.exec("python3", "-c", web.SERVER, box.id, "8000")
        assert process.stdout.readline() == "listening\n"
        with box.tunnel(8000) as tunnel:

            def answered() -> bool:
                with wire(tunnel.port) as line:
                    return line.ask("GET", "/", "localhost").json["me"] == box.id

            assert answered()
            ended = os.pidfd_open(int(Places(server.home).preview_pid.read_text()))
            signal.pidfd_send_signal(ended, signal.SIGKILL)
            select.select([ended], [], [])
            os.close(ended)
            # Nobody listens just now: whoever comes waits until somebody does.
            assert answered()
            box.pause()
            assert answered()
            server.kill()
            server.start()
            assert answered()


def test_the_kernel_asks_silent_clients_whether_they_are_there(server: Server) -> None:
    with Sandbox.create("base") as box:
        port, host = edge_of(box)
        with wire(port) as line:
            assert line.ask("GET", "/", host).status == 401
            here = f":{line.socket.getsockname()[1]:04X}"
            ends = [words.split() for words in Path("/proc/net/tcp").read_text().splitlines()]
            [theirs] = [words for words in ends if words[1].endswith(f":{port:04X}") and words[2].endswith(here)]
            assert theirs[5].startswith("02:"), "its timer is none of keep-alive"


def test_tunnels_carry_each_half_and_many_at_once(server: Server) -> None:
    with Sandbox.create("base") as box:
        code = (
            "import socket, threading\n"
            "def serve(c):\n"
            "    got = b''\n"
            "    while data := c.recv(65536): got += data\n"
            "    c.sendall(b'%d bytes' % len(got)); c.close()\n"
            "listener = socket.create_server(('127.0.0.1', 5432), backlog=200)\n"
            "print('listening', flush=True)\n"
            "while True: threading.Thread(target=serve, args=(listener.accept()[0],)).start()\n"
        )
        process = box.exec("python3", "-c", code)
        assert process.stdout.readline() == "listening\n"
        with box.tunnel(5432) as tunnel:
            answers: list[bytes] = []

            def ask(size: int) -> None:
                with socket.create_connection((tunnel.host, tunnel.port), timeout=60) as line:
                    line.sendall(bytes(size))
                    line.shutdown(socket.SHUT_WR)
                    answers.append(line.makefile("rb").read())

            threads = [threading.Thread(target=ask, args=(50_000 + number,)) for number in range(40)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert sorted(answers) == [b"%d bytes" % (50_000 + number) for number in range(40)]
        with box.tunnel(9) as nowhere, socket.create_connection((nowhere.host, nowhere.port), timeout=60) as line:
            try:
                assert line.recv(1) == b""
            except ConnectionResetError:
                pass
            assert nowhere.failure is not None
            assert "nothing listens on port 9" in nowhere.failure.message


def test_the_last_bytes_of_a_tunnel_arrive_though_the_guest_had_ended_before(server: Server) -> None:
    with Sandbox.create("base") as box:
        code = (
            "import socket, time\n"
            "listener = socket.create_server(('127.0.0.1', 5432))\n"
            "print('listening', flush=True)\n"
            "c, _ = listener.accept()\n"
            "c.shutdown(socket.SHUT_WR)\n"
            "got = 0\n"
            "while data := c.recv(4096):\n"
            "    got += len(data); time.sleep(0.001)\n"
            "print(got, flush=True)\n"
        )
        process = box.exec("python3", "-c", code)
        assert process.stdout.readline() == "listening\n"
        with box.tunnel(5432) as tunnel, socket.create_connection((tunnel.host, tunnel.port), timeout=60) as line:
            assert line.recv(1) == b""
            line.sendall(bytes(1 << 20))
            line.shutdown(socket.SHUT_WR)
            assert process.stdout.readline() == f"{1 << 20}\n"


def test_a_server_out_here_is_reached_from_inside_by_its_name(server: Server) -> None:
    ask = (
        "import socket, sys\n"
        "s = socket.create_connection(('db', 5432), timeout=60)\n"
        "s.sendall(bytes(int(sys.argv[1]))); s.shutdown(1)\n"
        "print(s.makefile('rb').read().decode(), end='')\n"
    )
    done = threading.Event()

    def serve(listener: socket.socket) -> None:
        def answer(line: socket.socket) -> None:
            with line:
                size = 0
                while data := line.recv(65_536):
                    size += len(data)
                line.sendall(b"%d bytes" % size)

        while True:
            line, _ = listener.accept()
            if done.is_set():
                line.close()
                return
            threading.Thread(target=answer, args=(line,)).start()

    with Sandbox.create("base", egress="none") as box, socket.create_server(("127.0.0.1", 0)) as listener:
        here = listener.getsockname()[1]
        serving = threading.Thread(target=serve, args=(listener,))
        serving.start()

        def inside(size: int) -> Result:
            return box.run(["python3", "-c", ask, str(size)])

        assert inside(1).exit_code != 0
        with box.expose(here, as_="db:5432") as offered:
            several = [box.exec("python3", "-c", ask, str(1_000_000 + number)) for number in range(5)]
            assert [one.stdout.read() for one in several] == [f"{1_000_000 + number} bytes" for number in range(5)]
            assert all(one.port != 5432 for one in box.ports()), "it is none of the sandbox's servers"
            with pytest.raises(Conflict), box.expose(here, as_="db:5432"):
                pass
            with box.expose(free_port(), as_="db:5433") as nobody:
                assert box.run(["python3", "-c", ask.replace("5432", "5433"), "1"]).stdout == ""
                assert nobody.failure is not None
                assert "nothing answers" in nobody.failure.message
            assert inside(7).stdout == "7 bytes"
            # By its preview token nobody may do that; links and public ports have nothing to do with it.
            port, host = edge_of(box)
            upgrade = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==")
            with wire(port) as line:
                target = f"/v1/sandboxes/{box.id}/exposed/1/other"
                assert line.ask("GET", target, host.partition(".")[2], f"Corral-Token: {box.preview_token()}", *upgrade).status == 401
        assert inside(1).exit_code != 0
        assert "db" not in box.files.read_text("/etc/hosts")
        with box.expose(here, as_="db:5432") as offered:
            box.pause()
            offered.wait()
            assert offered.failure is not None
        box.resume()
        assert inside(1).exit_code != 0
        told = [(event.kind, event.data["as"]) for event in box.events() if event.kind.startswith(("sandbox.exposed", "sandbox.unexposed"))]
        both = [("sandbox.exposed", "db:5432"), ("sandbox.unexposed", "db:5432")]
        assert told == [both[0], ("sandbox.exposed", "db:5433"), ("sandbox.unexposed", "db:5433"), both[1], *both]
        done.set()
        socket.create_connection(("127.0.0.1", here)).close()
        serving.join()


def test_what_was_connected_from_outside_ends_where_nobody_outside_has_it_any_more(server: Server) -> None:
    ask = (
        "import socket\n"
        "s = socket.create_connection(('db', 5432), timeout=120)\n"
        "print('connected', flush=True)\n"
        "try: print(s.recv(1))\n"
        "except OSError as error: print(type(error).__name__)\n"
    )
    serve = (
        "import pathlib, socket\n"
        "listener = socket.create_server(('127.0.0.1', 5432))\n"
        "print('listening', flush=True)\n"
        "c, _ = listener.accept()\n"
        "while data := c.recv(100): c.sendall(data)\n"
        "pathlib.Path('/tmp/ended').touch()\n"
    )
    with Sandbox.create("base") as box, socket.create_server(("127.0.0.1", 0)) as listener:
        here = listener.getsockname()[1]
        with box.expose(here, as_="db:5432") as offered:
            asking = box.exec("python3", "-c", ask)
            assert asking.stdout.readline() == "connected\n"
            box.pause()
            offered.wait()
        box.resume()
        assert asking.stdout.read() == "ConnectionResetError\n"
        with box.expose(here, as_="other:5432"):
            assert [line.split()[1] for line in box.files.read_text("/etc/hosts").splitlines() if line.endswith("# outside")] == ["other"]
        serving = box.exec("python3", "-c", serve)
        assert serving.stdout.readline() == "listening\n"
        with box.tunnel(5432) as tunnel, wire(tunnel.port) as line:
            assert echoes(line, b"before")
            [child] = box.fork(1)
            with child:
                assert child.run("until [ -e /tmp/ended ]; do sleep 0.1; done; echo ended", timeout=60).stdout == "ended\n"
            assert echoes(line, b"after")
            assert not box.files.exists("/tmp/ended")


def test_slow_and_silent_clients_hold_nobody_up(server: Server) -> None:
    with Sandbox.create("base") as box:
        process = box.exec("python3", "-c", web.SERVER, box.id, "8000")
        assert process.stdout.readline() == "listening\n"
        port, host = edge_of(box)
        token = f"Corral-Token: {box.preview_token()}"
        status = f"/proc/{Places(server.home).preview_pid.read_text()}/status"

        def resident() -> int:
            with open(status) as file:
                return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))

        before = resident()
        deaf: list[Wire] = []
        try:
            for _ in range(20):
                # They ask for much, and read nothing.
                line = Wire(port)
                deaf.append(line)
                line.say(f"GET /bulk?{100 << 20} HTTP/1.1\r\nHost: {host}\r\n{token}\r\n\r\n".encode())
            for _ in range(20):
                line = Wire(port)
                deaf.append(line)
                line.say(b"GET / HTTP/1.1\r\nHost:")
            with wire(port) as line:
                for _ in range(20):
                    assert line.ask("GET", "/", host, token).status == 200
            assert resident() - before < 60 << 10, "what nobody reads is kept"
        finally:
            for line in deaf:
                line.close()


def test_the_process_ends_with_everything_when_nobody_is_left_to_end_it(server: Server) -> None:
    places = Places(server.home)
    process = os.pidfd_open(int(places.preview_pid.read_text()))
    server.kill()
    os.kill(holder_of(places), signal.SIGKILL)
    server.down()
    ended, _, _ = select.select([process], [], [], 0)
    os.close(process)
    assert ended
    server.start()
