"""What sandboxes reach and must not reach, tried from inside real ones, with a small internet at the end of this machine's cable."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from corral import Egress, Sandbox
from corral.places import Places
from corral.schema.egress import Flow
from harness.internet import DNS, HERE, METADATA, OTHER, PRIVATE, WEB, Internet
from harness.server import Server


@contextmanager
def box(egress: Egress | Mapping[str, Any] | str) -> Generator[Sandbox]:
    with Sandbox.create("base", memory=256, egress=egress) as sandbox:
        yield sandbox


def python(sandbox: Sandbox, script: str, *, timeout: float = 60) -> str:
    done = sandbox.run(["python3", "-c", script], timeout=timeout)
    assert done.exit_code == 0, done.stderr
    return done.stdout.strip()


def reached(sandbox: Sandbox, *ends: tuple[str, int]) -> list[tuple[str, int]]:
    """Which of these accept a TCP connection and answer something."""
    script = f"""
import json, socket
found = []
for host, port in {list(ends)!r}:
    try:
        with socket.create_connection((host, port), timeout=2) as c:
            c.settimeout(2)
            c.sendall(b"GET / HTTP/1.0\\r\\nHost: " + host.encode() + b"\\r\\nConnection: close\\r\\n\\r\\n")
            answer = c.recv(100)
            if answer and b" 403 " not in answer[:20]:
                found.append([host, port])
    except OSError:
        pass
print(json.dumps(found))
"""
    return [(host, port) for host, port in json.loads(python(sandbox, script))]


def answered(sandbox: Sandbox, *ends: tuple[str, int]) -> list[tuple[str, int]]:
    """Which of these answer a UDP packet."""
    script = f"""
import json, socket
found = []
for host, port in {list(ends)!r}:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as c:
        c.settimeout(1)
        try:
            c.connect((host, port)); c.send(b"hello"); c.recv(100)
            found.append([host, port])
        except OSError:
            pass
print(json.dumps(found))
"""
    return [(host, port) for host, port in json.loads(python(sandbox, script))]


def resolved(sandbox: Sandbox, *names: str) -> dict[str, str | None]:
    script = f"""
import json, socket
found = {{}}
for name in {list(names)!r}:
    try:
        found[name] = socket.gethostbyname(name)
    except OSError:
        found[name] = None
print(json.dumps(found))
"""
    return json.loads(python(sandbox, script))


def denial(sandbox: Sandbox, **wanted: object) -> Flow:
    """The first denial with these fields, which are told in batches a moment later."""
    deadline = time.monotonic() + 20
    while True:
        told = list(sandbox.egress.denials())
        for flow in told:
            if all(getattr(flow, name) == value for name, value in wanted.items()):
                return flow
        assert time.monotonic() < deadline, told
        time.sleep(0.05)


def addresses(family: int = 4) -> list[str]:
    """All of this machine's."""
    shown = json.loads(subprocess.run(["ip", "-j", f"-{family}", "addr"], check=True, capture_output=True).stdout)
    return [address["local"] for link in shown for address in link["addr_info"]]


def walls(net: Server, sibling: Sandbox) -> list[tuple[str, int]]:
    """What no policy opens: this machine by any of its addresses, the switch, a sandbox beside."""
    other = python(sibling, "import socket; print(socket.gethostbyname(socket.gethostname()))")
    sibling.exec("python3", "-m", "http.server", "8000")
    inner = [("192.0.0.8", 53), ("192.0.0.8", 3128), ("192.0.0.1", 22), (other, 8000), (other, 22)]
    return [*((address, port) for address in addresses() for port in (net.port, 22, 53)), *inner]


def test_nothing_is_reached_without_being_asked_for(net: Server) -> None:
    with box("none") as sandbox:
        assert reached(sandbox, (WEB, 80), (WEB, 7), (PRIVATE, 80), (METADATA, 80), (HERE, net.port)) == []
        assert answered(sandbox, (WEB, 443), (DNS, 53)) == []
        assert resolved(sandbox, "www.example.com") == {"www.example.com": None}
        assert denial(sandbox, address=WEB, port=80).reason


def test_the_public_internet_is_reached_and_nothing_else(net: Server) -> None:
    with box("public") as sandbox, box("public") as sibling:
        open_ends = [(WEB, 80), (WEB, 7), (OTHER, 7), ("www.example.com", 80)]
        assert reached(sandbox, *open_ends) == open_ends
        assert resolved(sandbox, "www.example.com", "inside.example.com", "node.example.com")["www.example.com"] == WEB
        assert reached(sandbox, (PRIVATE, 80), (METADATA, 80), ("inside.example.com", 80), *walls(net, sibling)) == []
        assert denial(sandbox, address=PRIVATE, port=80)
        assert denial(sandbox, address=METADATA, port=80)


def test_quic_is_refused_at_once_unless_it_is_asked_for(net: Server) -> None:
    with box("public") as sandbox:
        assert answered(sandbox, (WEB, 443)) == []
        assert "QUIC" in (denial(sandbox, address=WEB, port=443, kind="udp").reason or "")
        sandbox.egress.set({"default": "public", "quic": True})
        assert answered(sandbox, (WEB, 443)) == [(WEB, 443)]


def test_all_opens_private_ranges_but_neither_the_node_nor_its_metadata(net: Server) -> None:
    with box("all") as sandbox, box("all") as sibling:
        assert reached(sandbox, (PRIVATE, 80)) == [(PRIVATE, 80)]
        assert reached(sandbox, (METADATA, 80), *walls(net, sibling)) == []


def test_a_range_is_opened_with_its_ports_only(net: Server) -> None:
    with box({"rules": [{"to": ["203.0.113.0/28"], "ports": [7], "protocol": "tcp"}, {"to": [f"{PRIVATE}/32"], "ports": [80]}]}) as sandbox:
        assert reached(sandbox, (WEB, 7), (WEB, 80), (WEB, 25), (DNS, 53), (PRIVATE, 80), (PRIVATE, 7)) == [(WEB, 7), (PRIVATE, 80)]
        assert answered(sandbox, (WEB, 443)) == []


def test_no_rule_opens_the_node_or_a_sibling(net: Server) -> None:
    with box({"default": "all", "rules": [{"to": ["0.0.0.0/0"]}]}) as sandbox, box("public") as sibling:
        assert reached(sandbox, *walls(net, sibling)) == []


def test_nothing_that_the_node_serves_is_reached_from_inside(net: Server) -> None:
    """API, previews and SSH, and a program of the machine's that listens everywhere, at every address of either family."""
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as anywhere:
        anywhere.setblocking(False)
        with box({"default": "all", "rules": [{"to": ["0.0.0.0/0"]}]}) as sandbox:
            edge = urlsplit(sandbox.preview(8000).url).port
            assert edge is not None
            ports = {*served(net), anywhere.getsockname()[1]}
            assert {net.port, edge} < ports
            assert reached(sandbox, *((address, port) for address in (*addresses(), *addresses(6), "::ffff:127.0.0.1") for port in ports)) == []
            sandbox.egress.set({"default": "public", "rules": [{"to": ["*"], "ports": sorted(ports)}]})
            assert reached(sandbox, *((name, port) for name in ("node.example.com", "localhost") for port in ports)) == []
        with pytest.raises(BlockingIOError):
            anywhere.accept()


def served(net: Server) -> set[int]:
    """The TCP ports on which a server and its processes listen."""
    assert net.process is not None
    places = Places(net.home)
    pids = {net.process.pid, *(int(path.read_text()) for path in (places.preview_pid, places.ssh_pid) if path.exists())}
    shown = subprocess.run(["ss", "-Hltnp"], check=True, capture_output=True, text=True).stdout
    return {int(line.split()[3].rpartition(":")[2]) for line in shown.splitlines() if any(f"pid={pid}," in line for pid in pids)}


def test_a_denied_range_stays_closed_whatever_else_is_open(net: Server) -> None:
    with box({"default": "public", "rules": [{"to": ["0.0.0.0/0"]}, {"to": [f"{OTHER}/32"], "action": "deny", "name": "no other"}]}) as sandbox:
        assert reached(sandbox, (WEB, 7), (OTHER, 7)) == [(WEB, 7)]
        assert denial(sandbox, address=OTHER).rule == "no other"


def test_a_change_of_policy_cuts_what_is_no_longer_allowed_and_nothing_else(net: Server) -> None:
    script = f"""
import socket, sys, time
kept, cut = socket.create_connection(("{WEB}", 7)), socket.create_connection(("{OTHER}", 7))
for line in sys.stdin:
    for name, c in (("kept", kept), ("cut", cut)):
        try:
            c.settimeout(5)
            c.sendall(b"x")
            print(name, len(c.recv(1)), flush=True)
        except OSError as error:
            print(name, type(error).__name__, flush=True)
"""
    with box("public") as sandbox:
        process = sandbox.exec("python3", "-c", script, stdin=True)
        lines = iter(process.stdout)

        def beat() -> list[str]:
            process.stdin.write(b"\n")
            return [next(lines).strip() for _ in range(2)]

        assert beat() == ["kept 1", "cut 1"]
        sandbox.egress.set(Egress.allow(f"{WEB}/32", ports=7))
        assert beat() == ["kept 1", "cut ConnectionResetError"]
        sandbox.egress.set("none")
        assert beat()[0] == "kept ConnectionResetError"
        process.kill()


def test_names_open_what_they_point_to(net: Server, internet: Internet) -> None:
    with box(Egress.allow("www.example.com", ports=80).allow("db.example.com", ports=7)) as sandbox:
        assert reached(sandbox, ("www.example.com", 80), ("db.example.com", 7)) == [("www.example.com", 80), ("db.example.com", 7)]
        assert reached(sandbox, ("api.example.com", 80), (OTHER, 80), (WEB, 25), ("inside.example.com", 80)) == []
        assert denial(sandbox, name="api.example.com").reason


def test_another_dns_server_is_not_reached(net: Server, internet: Internet) -> None:
    """What is sent to it is answered by ours, by the policy."""
    query = "b'\\x12\\x34\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0' + b'\\6secret\\7example\\3org\\0' + b'\\0\\1\\0\\1'"
    with box(Egress.allow("www.example.com")) as sandbox:
        asked = len(internet.seen.queries)
        script = f"""
import socket
for host in ("{DNS}", "{WEB}", "8.8.8.8"):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as c:
        c.settimeout(3)
        c.sendto({query}, (host, 53)); print(len(c.recv(512)) > 0)
"""
        assert python(sandbox, script).split() == ["True"] * 3
        assert [name for name, _ in internet.seen.queries[asked:] if "secret" in name] == []


def test_there_is_no_ipv6_and_no_multicast(net: Server) -> None:
    script = """
import socket
for family, kind, address in ((socket.AF_INET6, socket.SOCK_STREAM, ("2001:db8::1", 80)), (socket.AF_INET6, socket.SOCK_STREAM, ("fe80::1%eth0", 80)),
                              (socket.AF_INET, socket.SOCK_DGRAM, ("224.0.0.251", 5353)), (socket.AF_INET, socket.SOCK_DGRAM, ("255.255.255.255", 67))):
    try:
        with socket.socket(family, kind) as c:
            c.settimeout(1); c.connect(address); c.send(b"x"); c.recv(1); print("reached", address)
    except OSError: pass
"""
    with box("all") as sandbox:
        assert python(sandbox, script) == ""


def test_connections_at_once_are_limited(net: Server) -> None:
    script = f"""
import socket
open = []
try:
    for _ in range(20):
        open.append(socket.create_connection(("{WEB}", 7), timeout=2))
except OSError: pass
print(len(open))
"""
    with box({"default": "public", "budget": {"connections": 5}}) as sandbox:
        assert python(sandbox, script) == "5"


def test_beyond_its_bytes_a_sandbox_reaches_nothing(net: Server) -> None:
    script = f"""
import socket
got = 0
try:
    c = socket.create_connection(("{WEB}", 7), timeout=2)
    while True:
        c.sendall(bytes(10000)); got += len(c.recv(10000))
except OSError: pass
print(got)
"""
    with box({"default": "public", "budget": {"bytes": 1_000_000}}) as sandbox:
        assert 100_000 < int(python(sandbox, script)) < 1_000_000
        assert reached(sandbox, (WEB, 7), ("www.example.com", 80)) == []
        view = sandbox.egress.view()
        assert 900_000 < view.sent + view.received < 1_100_000


def test_bandwidth_is_limited_both_ways(net: Server) -> None:
    """Two megabytes at 8 Mbit/s are two seconds, less what goes through at once."""
    script = f"""
import socket, threading, time
c = socket.create_connection(("{WEB}", 7))
began = time.monotonic()
threading.Thread(target=lambda: (c.sendall(bytes(2_000_000)), c.shutdown(1))).start()
while c.recv(65536): pass
print(time.monotonic() - began)
"""
    with box({"default": "public", "budget": {"upload": 8, "download": 800}}) as sandbox:
        assert float(python(sandbox, script)) > 1.5
        sandbox.egress.set({"default": "public", "budget": {"upload": 800, "download": 8}})
        assert float(python(sandbox, script)) > 1.5


def test_a_frozen_sandbox_wakes_when_an_answer_arrives(net: Server, internet: Internet) -> None:
    """Nothing runs in it any more that would ever wake it, but what it has asked is answered late."""
    ask = """
import socket, sys
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"?", (sys.argv[1], int(sys.argv[2])))
"""

    def until(sandbox: Sandbox, *, frozen: bool) -> None:
        pid = json.loads((Places(net.home).boxes / f"{sandbox.id}.json").read_text())["identity"]["pid"]
        deadline = time.monotonic() + 30
        while (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T") is not frozen:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    with internet.namespace.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as server, box("public") as sandbox:
        server.bind((WEB, 0))
        server.settimeout(30)
        assert sandbox.run(["python3", "-c", ask, WEB, str(server.getsockname()[1])]).exit_code == 0
        _, asker = server.recvfrom(100)
        until(sandbox, frozen=True)
        server.sendto(b"!", asker)
        until(sandbox, frozen=False)


def test_what_was_reached_is_told_with_its_bytes(net: Server) -> None:
    with box("public") as sandbox:
        assert reached(sandbox, (WEB, 7)) == [(WEB, 7)]
        # Who asks is told of what is over, long before the kernel would look for it by itself.
        deadline = time.monotonic() + 20
        while not (told := [flow for flow in sandbox.egress.flows() if flow.address == WEB and flow.port == 7]):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert (told[0].kind, told[0].verdict, told[0].sent > 40, told[0].received > 40) == ("tcp", "allowed", True, True)


def test_git_clones_over_https_through_the_proxy(net: Server, internet: Internet, tmp_path: Path) -> None:
    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=x", "-c", "user.email=x@example.com", *words], check=True, capture_output=True, cwd=tmp_path)

    (tmp_path / "work").mkdir()
    (tmp_path / "work/README").write_text("hello\n")
    for words in (["init", "-q"], ["add", "README"], ["commit", "-qm", "first"]):
        git("-C", "work", *words)
    git("clone", "-q", "--bare", "work", "it.git")
    git("-C", "it.git", "update-server-info")
    internet.files = tmp_path
    try:
        with box(Egress.allow("www.example.com", ports=443)) as sandbox:
            sandbox.files.write("/tmp/ca.pem", internet.authority.file.read_bytes())
            clone = "GIT_SSL_CAINFO=/tmp/ca.pem git clone -q https://{host}/files/it.git /tmp/{host} && cat /tmp/{host}/README"
            assert sandbox.run(clone.format(host="www.example.com"), timeout=60).check().stdout == "hello\n"
            assert sandbox.run(clone.format(host="api.example.com"), timeout=60).exit_code != 0
    finally:
        internet.files = None


def test_policies_hold_over_a_restart_of_the_server(net: Server) -> None:
    with box(Egress.allow(f"{WEB}/32").allow("www.example.com")) as sandbox:
        net.kill()
        net.start()
        ends = [(WEB, 7), ("www.example.com", 80)]
        assert reached(sandbox, *ends, (OTHER, 7), (PRIVATE, 80), (HERE, net.port)) == ends
        sandbox.egress.set("none")
        assert reached(sandbox, *ends) == []


def test_the_egress_process_is_replaced_when_it_dies(net: Server) -> None:
    with box(Egress.allow("www.example.com")) as sandbox:
        assert reached(sandbox, ("www.example.com", 80))
        pid = int(Places(net.home).egress_pid.read_text())
        os.kill(pid, 9)
        deadline = time.monotonic() + 30
        while not reached(sandbox, ("www.example.com", 80)):
            assert time.monotonic() < deadline
        assert reached(sandbox, ("api.example.com", 80), (OTHER, 7)) == []
