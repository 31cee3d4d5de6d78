"""egress: what the proxy costs. A web server in a namespace of its own is reached once by the kernel alone and once through the proxy, spliced."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from typing import Any

from corral import Client, CorralError, Sandbox, spawn
from corral.bench.figure import Figure, Floor, percentile
from corral.errors import SetupError
from corral.net.authority import Authority
from corral.places import Places, default_home

IMAGE = "base"
"""With Python, which the client inside is written in."""
HERE, THERE = "192.0.2.78", "192.0.2.77"
"""Of a range for documentation (RFC 5737): nobody else has them."""
ROUNDS = 4
BULK = 200 << 20
_DIRECT = {"default": "public"}
# A rule on a name makes the web's ports the proxy's; one on the address lets it pass, whatever name is told.
_PROXIED = {"rules": [{"to": [THERE]}, {"to": ["corral-bench.invalid"]}]}
_NAMED = {
    "rules": [
        {"to": ["pkgs.example.com", "*.example.org"], "ports": ["443"]},
        {"to": ["10.0.0.0/8"], "ports": ["5432"]},
        {"to": ["evil.example.org"], "action": "deny"},
    ]
}
"""What somebody may write: names, a range, a denial."""

_SERVER = """
import socket, ssl, sys, threading
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[2])
def serve(plain):
    try:
        with context.wrap_socket(plain, server_side=True) as connection:
            size, block = int(connection.recv(100)), bytes(1 << 20)
            while size > 0:
                size -= connection.send(block[:size])
    except OSError:
        pass
with socket.create_server((sys.argv[1], 443), backlog=256) as listener:
    print("ready", flush=True)
    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""
_CLIENT = """
import json, socket, ssl, sys, time
context = ssl._create_unverified_context()
buffer = bytearray(1 << 18)
def fetch(size):
    began = time.perf_counter()
    with context.wrap_socket(socket.create_connection((sys.argv[1], 443)), server_hostname="bench.invalid") as connection:
        connection.sendall(b"%d" % size)
        left = size
        while left > 0 and (count := connection.recv_into(buffer)):
            left -= count
    return time.perf_counter() - began
fetch(1)
samples = [fetch(1) * 1000 for _ in range(int(sys.argv[2]))]
print(json.dumps([samples, int(sys.argv[3]) / fetch(int(sys.argv[3])) / 1e6]))
"""


def egress(client: Client, n: int, image: str) -> Figure:
    """Milliseconds of a new HTTPS connection to its first byte, through the proxy; the floor is the same without. Besides: MB/s of both, the time of a change,
    and what a claim costs more with a policy than without one (`claim_added_ms`)."""
    spliced: list[float] = []
    direct: list[float] = []
    rates: dict[str, list[float]] = {"proxied": [], "direct": []}
    changes: list[float] = []
    failures = 0
    with _web_server(), client.sandboxes.create(IMAGE, memory=512, egress=_DIRECT) as sandbox:
        for _ in range(ROUNDS):
            for policy, samples, kind in ((_DIRECT, direct, "direct"), (_PROXIED, spliced, "proxied")):
                began = time.perf_counter()
                sandbox.egress.set(policy)
                changes.append((time.perf_counter() - began) * 1000)
                try:
                    taken, rate = _measured(sandbox, max(1, n // ROUNDS))
                except (CorralError, ValueError):
                    failures += 1
                    continue
                samples.extend(taken)
                rates[kind].append(rate)
    claims, more_failures = _claims(client, n, image)
    failures += more_failures
    proxied_rate, direct_rate = percentile(rates["proxied"], 50), percentile(rates["direct"], 50)
    ours, floor = percentile(spliced, 50), percentile(direct, 50)
    with_policy, without = (percentile(claims[kind], 50) for kind in ("policy", "none"))
    more: dict[str, Any] = {
        "claim_added_ms": None if with_policy is None or without is None else with_policy - without,
        "claim_ms": with_policy,
        "claim_ms_none": without,
        "added_ms": None if ours is None or floor is None else ours - floor,
        "mb_s": proxied_rate,
        "mb_s_direct": direct_rate,
        "mb_s_ratio": proxied_rate / direct_rate if proxied_rate and direct_rate else None,
        "change_ms": percentile(changes, 50),
        "change_ms_max": max(changes),
    }
    return Figure("egress", "ms", spliced, failures, Floor("without the proxy", direct), more)


def _claims(client: Client, n: int, image: str) -> tuple[dict[str, list[float]], int]:
    """Milliseconds of the node's claim, with a policy of names and with none, in turn; and how many creates failed. Those that found no member waiting don't count."""
    found: dict[str, list[float]] = {"policy": [], "none": []}
    failures = 0
    for number in range(2 * n):
        kind, policy = ("policy", _NAMED) if number % 2 else ("none", {"default": "none"})
        try:
            with client.sandboxes.create(image, egress=policy) as sandbox:
                if not sandbox.timing.get("cold"):
                    found[kind].append(sandbox.timing["claim"] * 1000)
        except CorralError:
            failures += 1
    return found, failures


def _measured(sandbox: Sandbox, count: int) -> tuple[list[float], float]:
    done = sandbox.run(["python3", "-c", _CLIENT, THERE, str(count), str(BULK)], timeout=120).check()
    samples, rate = json.loads(done.stdout)
    return samples, rate


@contextlib.contextmanager
def _web_server() -> Generator[None]:
    """At the end of a cable of this machine, since no sandbox reaches the machine itself."""
    if os.geteuid() != 0:
        raise SetupError("`corral bench egress` makes a network namespace, which needs root", hint="run it with sudo")
    name = f"corral-bench-{os.getpid()}"
    device = f"cb{os.getpid()}"
    _ip("netns", "add", name)
    try:
        _ip("link", "add", device, "type", "veth", "peer", "name", "web", "netns", name)
        _ip("addr", "add", f"{HERE}/32", "dev", device)
        _ip("link", "set", "dev", device, "up")
        _ip("route", "add", f"{THERE}/32", "dev", device, "src", HERE)
        for words in (f"addr add {THERE}/32 dev web", "link set dev web up", f"route add {HERE}/32 dev web"):
            _ip("-n", name, *words.split())
        authority = Authority(Places(default_home()).keys)
        with tempfile.NamedTemporaryFile() as chain:
            chain.write(authority.chain(THERE))
            chain.flush()
            argv = ["ip", "netns", "exec", name, sys.executable, "-c", _SERVER, THERE, chain.name]
            with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as server:
                assert server.stdout is not None
                try:
                    if server.stdout.readline() != "ready\n":
                        raise SetupError("the web server to measure with did not start")
                    yield
                finally:
                    server.kill()
    finally:
        _ip("netns", "del", name)


def _ip(*words: str) -> None:
    spawn.run(["ip", *words], timeout=20).check()
