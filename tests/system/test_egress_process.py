"""The edge process with real sockets: what clients in a slot reach, what they are told, and what they can't break."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import select
import signal
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from corral.net.learn import propose
from corral.schema.egress import Decision
from harness.edge import TABLE, Bench
from harness.internet import OTHER, PRIVATE, SILENT, WEB

pytestmark = pytest.mark.no_engine

NAMES = {
    "api.example.com": WEB,
    "good.example.com": WEB,
    "evil.example.net": OTHER,
    "git.example.org": WEB,
    "inside.example.com": PRIVATE,
    "silent.example.com": SILENT,
}


@pytest.fixture(scope="module")
async def whole(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path_factory.mktemp("edge"))
    try:
        await bench.open()
        yield bench
    finally:
        await bench.close()


@pytest.fixture
async def bench(whole: Bench) -> AsyncIterator[Bench]:
    await whole.reset()
    whole.internet.zone.addresses = {name: [address] for name, address in NAMES.items()}
    yield whole
    assert not whole.errors(), whole.errors()


# What a client does, inside its namespace


def lookup(name: str, kind: int = 1, server: str = "192.0.0.1", *, tcp: bool = False) -> tuple[int, list[str], str]:
    """Code, addresses, and the extended error's text."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    query = b"\x12\x34\1\0\0\1\0\0\0\0\0\1" + labels + b"\0" + struct.pack(">HH", kind, 1) + b"\0\0\x29\x04\xd0\0\0\0\0\0\0"
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM) as connection:
        connection.settimeout(8)
        connection.connect((server, 53))
        if tcp:
            connection.sendall(len(query).to_bytes(2) + query)
            reply = connection.recv(4096)[2:]
        else:
            connection.send(query)
            reply = connection.recv(4096)
    assert reply[:2] == b"\x12\x34"
    end = 12 + len(labels) + 5
    count = int.from_bytes(reply[6:8])
    addresses = [socket.inet_ntoa(reply[end + 16 * n + 12 : end + 16 * n + 16]) for n in range(count)] if kind == 1 else []
    text = reply.rpartition(b"\0\x0f")[2]
    return reply[3] & 15, addresses, text[4:].decode(errors="replace") if reply[11] and b"\0\x0f" in reply else ""


def get(
    name: str, path: str = "/", *, address: str = WEB, port: int = 80, method: str = "GET", headers: dict[str, str] | None = None
) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection(address, port, timeout=15)
    try:
        connection.request(method, path, headers={"Host": name, **(headers or {})})
        with connection.getresponse() as answer:
            return answer.status, answer.read(), {key.lower(): value for key, value in answer.getheaders()}
    finally:
        connection.close()


def tls(authority: Path, name: str | None, *, address: str = WEB, port: int = 443, alpn: list[str] | None = None) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(authority))
    if alpn:
        context.set_alpn_protocols(alpn)
    if name is None:
        context.check_hostname = False
    plain = socket.create_connection((address, port), timeout=15)
    try:
        return context.wrap_socket(plain, server_hostname=name)
    except BaseException:
        plain.close()
        raise


def get_tls(
    authority: Path, name: str, path: str = "/", *, host: str | None = None, address: str = WEB, method: str = "GET", headers: dict[str, str] | None = None
) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPSConnection(name, timeout=15)
    connection.sock = tls(authority, name, address=address)
    try:
        connection.request(method, path, headers={"Host": host or name, **(headers or {})})
        with connection.getresponse() as answer:
            return answer.status, answer.read(), {key.lower(): value for key, value in answer.getheaders()}
    finally:
        connection.close()


def nameless(authority: Path, request: bytes) -> bytes:
    """What is answered to a request in TLS that names no server."""
    with tls(authority, None, address=OTHER) as connection:
        connection.sendall(request)
        return connection.recv(65536)


def raw(data: bytes, *, address: str = WEB, port: int = 80) -> bytes:
    """Everything that comes back."""
    try:
        connection = socket.create_connection((address, port), timeout=15)
    except ConnectionResetError:
        return b""
    with connection:
        answer = b""
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(65536):
                answer += piece
        except OSError:
            # It was reset.
            pass
        return answer


def hello(name: str) -> bytes:
    """The first flight of a TLS client."""
    outgoing = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


def with_ech(hello: bytes) -> bytes:
    """The same hello, in one record, with an Encrypted Client Hello (RFC 9849, 5) whose inner one nobody can read."""
    inner = b"\0" + b"\0\1\0\1" + b"\7" + (32).to_bytes(2) + bytes(32) + (64).to_bytes(2) + bytes(64)
    extension = b"\xfe\x0d" + len(inner).to_bytes(2) + inner
    body = hello[9:]
    at = 34
    for size in (1, 2, 1):
        at += size + int.from_bytes(body[at : at + size])
    extensions = body[at + 2 :] + extension
    body = body[:at] + len(extensions).to_bytes(2) + extensions
    message = b"\1" + len(body).to_bytes(3) + body
    return b"\x16\3\1" + len(message).to_bytes(2) + message


def error(body: bytes) -> dict[str, Any]:
    return json.loads(body)["error"]


# Names


async def test_allowed_names_resolve_and_denied_ones_explain(bench: Bench) -> None:
    guest = bench.guests[0]
    await bench.admit(guest, {"rules": [{"to": ["api.example.com", "*.example.org"]}]})
    assert await guest.run(lookup, "api.example.com") == (0, [WEB], "")
    assert await guest.run(lambda: lookup("API.example.com", tcp=True)) == (0, [WEB], "")
    assert await guest.run(lookup, "git.example.org", 1, "8.8.8.8") == (0, [WEB], ""), "whatever server is asked"
    code, addresses, text = await guest.run(lookup, "evil.example.net")
    assert (code, addresses) == (0, ["192.0.0.1"])
    assert "evil.example.net" in text
    assert await guest.run(lookup, "api.example.com", 28) == (0, [], ""), "there is no IPv6"
    assert "evil.example.net" not in {name for name, _ in bench.internet.seen.queries}
    denial = await bench.flow(kind="dns", name="evil.example.net")
    assert denial.verdict == "denied"


async def test_a_sandbox_without_a_policy_gets_nothing(bench: Bench) -> None:
    guest = bench.guests[0]
    with pytest.raises(OSError):
        await guest.run(lookup, "api.example.com")
    with pytest.raises(OSError):
        await guest.run(get, "api.example.com")


async def test_names_that_point_inside_are_refused(bench: Bench) -> None:
    guest, zone = bench.guests[0], bench.internet.zone
    zone.addresses |= {
        "meta.example.com": ["169.254.169.254"],
        "loop.example.com": ["127.0.0.1"],
        "host.example.com": ["192.0.2.1"],
        "mixed.example.com": [PRIVATE, WEB],
    }
    zone.aliases["alias.example.com"] = "inside.example.com"
    await bench.admit(guest, {"rules": [{"to": ["*.example.com"]}]})
    for name in ("inside.example.com", "meta.example.com", "loop.example.com", "host.example.com", "alias.example.com"):
        code, addresses, text = await guest.run(lookup, name)
        assert (code, addresses) == (0, ["192.0.0.1"]), name
        assert "points nowhere allowed" in text
        status, body, _ = await guest.run(get, name)
        assert status == 403, name
        assert "points nowhere allowed" in error(body)["message"]
    assert (await guest.run(lookup, "mixed.example.com"))[1] == [WEB]
    await bench.admit(guest, {"rules": [{"to": ["*.example.com"]}, {"to": ["10.77.0.0/16"]}]})
    assert (await guest.run(lookup, "inside.example.com"))[1] == [PRIVATE]
    assert (await guest.run(get, "inside.example.com"))[0] == 200


async def test_an_alias_is_judged_by_the_asked_name_only(bench: Bench) -> None:
    guest = bench.guests[0]
    bench.internet.zone.aliases["cdn.example.com"] = "evil.example.net"
    await bench.admit(guest, {"rules": [{"to": ["cdn.example.com"]}]})
    assert (await guest.run(lookup, "cdn.example.com"))[1] == [OTHER]
    bench.internet.zone.aliases["bad.example.com"] = "cdn.example.com"
    assert (await guest.run(lookup, "bad.example.com"))[1] == ["192.0.0.1"]


async def test_an_alias_of_a_name_that_a_rule_denies_is_denied(bench: Bench) -> None:
    guest, zone = bench.guests[0], bench.internet.zone
    zone.aliases |= {"cdn.example.com": "middle.example.org", "middle.example.org": "evil.example.net"}
    await bench.admit(guest, {"default": "public", "rules": [{"to": ["evil.example.net"], "action": "deny"}]})
    for _ in range(2):  # the second from what is known
        code, addresses, text = await guest.run(lookup, "cdn.example.com")
        assert (code, addresses) == (0, ["192.0.0.1"])
        assert text.endswith("rule 'evil.example.net' of the egress policy denies evil.example.net")
    status, body, _ = await guest.run(lambda: get("cdn.example.com", address=OTHER))
    assert status == 403
    assert "denies evil.example.net" in error(body)["message"]
    assert (await guest.run(lambda: raw(hello("cdn.example.com"), address=OTHER, port=443))).startswith(b"\x15\3")
    assert not bench.internet.seen.connections


async def test_a_denied_name_is_denied_however_it_is_written(bench: Bench) -> None:
    guest = bench.guests[0]
    await bench.admit(guest, {"default": "public", "rules": [{"to": ["evil.example.net", "*.evil.example.net"], "action": "deny"}]})
    for name in ("EVIL.example.NET", "evil.example.net", "x.EVIL.example.net"):
        for tcp in (False, True):
            assert (await guest.run(lambda name=name, tcp=tcp: lookup(name, tcp=tcp)))[1] == ["192.0.0.1"]
        for host in (name, f"{name}.", f"{name}:80", f"{name}.:80"):
            assert (await guest.run(lambda host=host: get(host, address=OTHER)))[0] == 403
        assert (await guest.run(lambda name=name: raw(hello(name), address=OTHER, port=443))).startswith(b"\x15\3")
    for host in ("[::1]", "[::ffff:203.0.113.11]", "203.0.113.11", "0xcb.0x00.0x71.0x0b", "3405803787", "evil.example.net\t", "evil%2eexample.net"):
        answer = await guest.run(lambda host=host: raw(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode(), address=OTHER))
        assert b" 403 " in answer or b" 400 " in answer or b" 502 " in answer, host
    assert not bench.internet.seen.connections


async def test_names_are_no_tunnel(bench: Bench) -> None:
    guest = bench.guests[0]
    await bench.admit(guest, {"rules": [{"to": ["*.example.com"]}]})
    long = ".".join(["a" * 60] * 3) + ".example.com"
    assert (await guest.run(lookup, long))[1] == ["192.0.0.1"]
    assert not bench.internet.seen.queries

    def flood() -> int:
        return sum(lookup(f"x{n}.example.com")[0] == 5 for n in range(400))

    assert await guest.run(flood) > 20
    assert len(bench.internet.seen.queries) < 400


async def test_answers_over_tcp_when_they_were_cut(bench: Bench) -> None:
    guest, zone = bench.guests[0], bench.internet.zone
    zone.addresses["many.example.com"] = [f"203.0.113.{n}" for n in range(100, 150)]
    zone.truncated.add("many.example.com")
    await bench.admit(guest, "public")
    assert len((await guest.run(lookup, "many.example.com"))[1]) == 50


async def test_a_resolver_that_is_silent(bench: Bench) -> None:
    guest, zone = bench.guests[0], bench.internet.zone
    zone.silent.add("quiet.example.com")
    await bench.admit(guest, "public")
    assert (await guest.run(lookup, "quiet.example.com"))[0] == 2
    assert (await guest.run(lookup, "api.example.com"))[0] == 0


# The web


async def test_web_by_name(bench: Bench) -> None:
    guest, ca = bench.guests[0], bench.internet.authority.file
    await bench.admit(guest, {"rules": [{"to": ["api.example.com"]}]})
    status, body, _ = await guest.run(get, "api.example.com", "/x")
    assert (status, body) == (200, b"GET api.example.com /x\n")
    # Whatever address is dialled, the name's own is reached.
    assert (await guest.run(lambda: get("api.example.com", address=OTHER)))[0] == 200
    assert all(address == WEB for address, _ in bench.internet.seen.connections)
    status, body, headers = await guest.run(get, "evil.example.net")
    assert status == 403
    assert headers["x-corral-denied"] == "1"
    assert "evil.example.net" in error(body)["message"]
    assert error(body)["hint"]
    status, body, _ = await guest.run(get_tls, ca, "api.example.com", "/y")
    assert (status, body) == (200, b"GET api.example.com /y\n"), "with the server's own certificate: nothing was decrypted"
    with pytest.raises(ssl.SSLError, match=r"(?i)access denied"):
        await guest.run(tls, ca, "evil.example.net")
    with pytest.raises((ssl.SSLError, OSError)):
        await guest.run(tls, ca, None)
    flow = await bench.flow(kind="tls", name="api.example.com")
    assert (flow.verdict, flow.rule, flow.address, flow.port) == ("allowed", "api.example.com", WEB, 443)
    assert flow.sent > 100
    assert flow.received > 100
    denied = await bench.flow(kind="http", name="evil.example.net")
    assert (denied.verdict, denied.status, denied.path) == ("denied", 403, "/")
    assert (await bench.flow(kind="tls", name="evil.example.net")).reason


async def test_the_machine_is_never_reached(bench: Bench) -> None:
    guest = bench.guests[0]
    await bench.admit(guest, {"default": "all", "rules": [{"to": ["a.example.com", "0.0.0.0/0"]}]})
    for address in ("192.0.2.1", "198.19.0.1", "192.0.0.8", "198.18.1.2", "127.0.0.1"):
        for port in (80, 443, 53, 3128, 22):
            if (address, port) == ("192.0.0.8", 53) or address == "127.0.0.1":
                continue

            def attempt(address: str = address, port: int = port) -> bytes:
                try:
                    return raw(b"GET / HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n", address=address, port=port)
                except OSError:
                    return b""

            answer = await guest.run(attempt)
            assert b"200 OK" not in answer, (address, port)
            assert not answer or b"403" in answer, (address, port)


async def test_kernel_pins_open_other_ports_of_a_name(bench: Bench) -> None:
    guest = bench.guests[0]
    await bench.admit(guest, {"rules": [{"to": ["api.example.com"], "ports": [7], "protocol": "tcp"}]})

    def echo(port: int) -> bytes:
        return raw(b"hello", port=port)

    with pytest.raises(OSError):
        await guest.run(echo, 7)
    assert (await guest.run(lookup, "api.example.com"))[1] == [WEB]
    assert await guest.run(echo, 7) == b"hello"
    with pytest.raises(OSError):
        await guest.run(echo, 25)
    # A new generation: what was resolved stays reachable without being resolved again.
    await bench.admit(guest, {"rules": [{"to": ["api.example.com"], "ports": [7, 25]}]})
    await bench.client.settled()
    assert await guest.run(echo, 7) == b"hello"
    await bench.admit(guest, {"rules": [{"to": ["api.example.com"], "ports": [25]}]})
    await bench.client.settled()
    with pytest.raises(OSError):
        await guest.run(echo, 7)


async def test_pins_end_with_their_sandbox(bench: Bench) -> None:
    """Of all its policies, and of no other sandbox's."""
    first, second = bench.guests[:2]
    for guest in (second, first):
        await bench.admit(guest, {"rules": [{"to": ["api.example.com"], "ports": [7], "protocol": "tcp"}]})
        assert (await guest.run(lookup, "api.example.com"))[1] == [WEB]
    both = bench.pinned()
    assert len(both) == 2
    latest = await bench.admit(first, {"rules": [{"to": ["api.example.com"], "ports": [7, "20-30"]}, {"to": ["good.example.com"]}]})
    assert (await first.run(lookup, "good.example.com"))[0] == 0
    await bench.client.settled()
    assert len(bench.pinned()) > 4
    assert bench.pinned() > both
    await bench.client.drop(latest.generation)
    await bench.client.settled()
    assert len(bench.pinned()) == 1
    assert bench.pinned() < both
    assert await second.run(lambda: raw(b"hello", port=7)) == b"hello"
    assert bench.errors() == ""


async def test_requests_on_one_connection_are_judged_one_by_one(bench: Bench) -> None:
    guest = bench.guests[0]
    await bench.admit(guest, {"rules": [{"to": ["api.example.com", "good.example.com"]}]})
    request = b"GET /%b HTTP/1.1\r\nHost: %b\r\n\r\n"
    answer = await guest.run(
        raw,
        request % (b"1", b"api.example.com")
        + request % (b"2", b"good.example.com")
        + request % (b"3", b"evil.example.net")
        + request % (b"4", b"api.example.com"),
    )
    assert answer.count(b"200 OK") == 2
    assert b"GET good.example.com /2" in answer
    assert b"403" in answer
    assert b"/4" not in answer


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/1.1\r\nHost: api.example.com\r\nHost: evil.example.net\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET http://evil.example.net/ HTTP/1.1\r\nHost: api.example.com\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: api.example.com\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        b"POST / HTTP/1.1\r\nHost: api.example.com\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: api.example.com\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.0\r\nHost: api.example.com\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: api.example.com\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : api.example.com\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: api.example.com\r\n X: folded\r\nContent-Length : 3\r\n\r\nabc",
        b"GET /\0 HTTP/1.1\r\nHost: api.example.com\r\n\r\n",
        b"TRACE / HTTP/1.1\r\nHost: api.example.com\r\n\r\n",
        b"CONNECT evil.example.net:443 HTTP/1.1\r\nHost: api.example.com\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: api.example.com@evil.example.net\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x00\x05hello",
        b"\x16\x03\x01\x40\x00" + b"x" * 100,
        b"\0" * 5000,
        b"G",
    ],
)
async def test_what_could_be_read_in_two_ways_goes_nowhere(bench: Bench, request_bytes: bytes) -> None:
    guest = bench.guests[0]
    await bench.admit(guest, {"rules": [{"to": ["api.example.com"]}]})
    answer = await guest.run(raw, request_bytes)
    assert not answer or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 501", b"\x15\x03", b"\0\0\0\4\0\0\0\0\0"))
    assert not bench.internet.seen.requests
    assert (await guest.run(get, "api.example.com"))[0] == 200


async def test_what_names_no_host_to_us_reaches_none_by_the_name_it_was_resolved_for(bench: Bench) -> None:
    """An allowed and a denied name may share an address, and servers skip an empty line before a request."""
    guest = bench.guests[0]
    bench.internet.zone.addresses["shared.example.com"] = [WEB]
    await bench.admit(guest, {"rules": [{"to": ["shared.example.com"]}]})
    assert (await guest.run(lookup, "shared.example.com"))[1] == [WEB]
    assert await guest.run(raw, b"\r\nGET / HTTP/1.1\r\nHost: evil.example.net\r\nConnection: close\r\n\r\n") == b""
    assert await guest.run(lambda: raw(b"\x15\x03\x01\x00\x02\x01\x00" + hello("evil.example.net"), port=443)) == b""
    assert not bench.internet.seen.requests


async def test_a_body_that_is_none_is_refused_half_way(bench: Bench) -> None:
    guest = bench.guests[0]
    await bench.admit(guest, {"rules": [{"to": ["api.example.com"]}]})
    head = b"POST /echo HTTP/1.1\r\nHost: api.example.com\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
    assert (await guest.run(raw, head + b"zz\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
    assert b"200" not in await guest.run(raw, head)


async def test_a_server_that_fails_is_told_from_a_denial(bench: Bench) -> None:
    guest = bench.guests[0]
    await bench.admit(guest, {"rules": [{"to": ["*.example.com"]}]})
    for path in ("/garbage", "/short"):
        try:
            status, body, _ = await guest.run(get, "api.example.com", path)
        except http.client.IncompleteRead:
            assert path == "/short"
            continue
        assert status == 502
        assert error(body)["code"] == "egress_failed"
    status, body, _ = await guest.run(get, "nothing.example.com")
    assert status == 502
    assert "no address" in error(body)["message"]
    status, body, _ = await guest.run(get, "silent.example.com")
    assert status == 502
    assert "did not answer" in error(body)["message"]
    assert (await bench.flow(kind="http", name="silent.example.com")).verdict == "failed"


async def test_bodies_stream_both_ways(bench: Bench) -> None:
    guest = bench.guests[0]
    await bench.admit(guest, {"rules": [{"to": ["api.example.com"]}]})
    assert len((await guest.run(get, "api.example.com", "/bytes?n=20000000"))[1]) == 20_000_000

    def post() -> bytes:
        connection = http.client.HTTPConnection(WEB, 80, timeout=15)
        connection.request("POST", "/echo", iter([b"a" * 100_000] * 20), {"Host": "api.example.com", "Transfer-Encoding": "chunked"}, encode_chunked=True)
        try:
            return connection.getresponse().read()
        finally:
            connection.close()

    assert (await guest.run(post)).endswith(b"a" * 2_000_000)
    continued = b"POST /echo HTTP/1.1\r\nHost: api.example.com\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello"
    assert b"200 OK" in await guest.run(raw, continued)
    assert (await guest.run(lambda: get("api.example.com", method="HEAD")))[:2] == (200, b"")


async def test_tls_is_spliced_at_size(bench: Bench) -> None:
    guest, ca = bench.guests[0], bench.internet.authority.file
    await bench.admit(guest, {"rules": [{"to": ["api.example.com"]}]})
    assert len((await guest.run(get_tls, ca, "api.example.com", "/bytes?n=50000000"))[1]) == 50_000_000
    flow = await bench.flow(kind="tls", name="api.example.com")
    assert flow.received > 50_000_000


async def test_a_server_that_speaks_first(bench: Bench) -> None:
    guest = bench.guests[0]
    await bench.admit(guest, {"rules": [{"to": ["git.example.org"], "action": "deny", "ports": [22]}], "default": "public"})

    def greeting() -> bytes:
        with socket.create_connection((WEB, 25), timeout=15) as connection:
            return connection.recv(100)

    assert await guest.run(greeting) == b"220 hello\r\n"


async def test_a_denied_port_of_a_name(bench: Bench) -> None:
    guest = bench.guests[0]
    await bench.admit(guest, {"default": "public", "rules": [{"to": ["api.example.com"], "action": "deny", "ports": [7]}]})
    assert await guest.run(lambda: raw(b"hello", port=7)) == b"hello", "nobody knows its name"
    assert (await guest.run(lookup, "api.example.com"))[1] == [WEB]
    assert await guest.run(lambda: raw(b"hello", port=7)) == b""
    assert (await guest.run(get, "api.example.com"))[0] == 200


async def test_a_change_cuts_what_it_no_longer_allows(bench: Bench) -> None:
    guest, ca = bench.guests[0], bench.internet.authority.file
    await bench.admit(guest, {"rules": [{"to": ["api.example.com", "good.example.com"]}]})
    kept, cut = await guest.run(tls, ca, "api.example.com"), await guest.run(tls, ca, "good.example.com")
    plain = await guest.run(lambda: socket.create_connection((WEB, 80), timeout=15))
    with kept, cut, plain:
        plain.sendall(b"GET /never HTTP/1.1\r\nHost: good.example.com\r\n\r\n")
        await bench.internet.wait(lambda seen: any(b"/never" in head for head in seen.requests))
        await bench.admit(guest, {"rules": [{"to": ["api.example.com"]}]})
        await bench.client.settled()
        kept.sendall(b"GET /still HTTP/1.1\r\nHost: api.example.com\r\n\r\n")
        assert b"200 OK" in kept.recv(1000)
        with pytest.raises(OSError):
            cut.sendall(b"GET /still HTTP/1.1\r\nHost: good.example.com\r\n\r\n")
            if not cut.recv(1000):
                raise ConnectionResetError
        with pytest.raises(ConnectionResetError):
            plain.recv(1000)
    assert "policy has changed" in str((await bench.flow(kind="tls", name="good.example.com")).reason)


@pytest.mark.parametrize(
    "changed",
    [
        {"rules": [{"to": ["api.example.com"]}, {"to": [f"{WEB}/32"], "action": "deny"}]},
        {"rules": [{"to": [f"{OTHER}/32"]}]},
        {"rules": [{"to": ["api.example.com"], "action": "ask"}]},
        {"rules": [{"to": ["api.example.com"], "ports": [80]}, {"to": ["api.example.com"], "action": "deny", "ports": [443]}]},
    ],
    ids=["where its name led to is denied", "what was dialled is allowed and not where it led to", "somebody would be asked", "its port is denied"],
)
async def test_a_change_cuts_by_where_a_connection_has_led_to(bench: Bench, changed: dict[str, Any]) -> None:
    """The program dials one address, its connection goes to another: to our own resolution of the name."""
    guest, ca = bench.guests[0], bench.internet.authority.file
    await bench.admit(guest, {"rules": [{"to": ["api.example.com"]}]})
    with await guest.run(lambda: tls(ca, "api.example.com", address=OTHER)) as spliced:
        spliced.sendall(b"GET /before HTTP/1.1\r\nHost: api.example.com\r\n\r\n")
        assert b"200 OK" in await guest.run(spliced.recv, 1000)
        # Another rule makes no difference to it.
        await bench.admit(guest, {"rules": [{"to": ["api.example.com"]}, {"to": [f"{PRIVATE}/32"], "action": "deny"}]})
        spliced.sendall(b"GET /between HTTP/1.1\r\nHost: api.example.com\r\n\r\n")
        assert b"200 OK" in await guest.run(spliced.recv, 1000)
        await bench.admit(guest, changed)
        with pytest.raises(OSError):
            if not await guest.run(spliced.recv, 1000):
                raise ConnectionResetError
    flow = await bench.flow(kind="tls", address=WEB)
    assert "policy has changed" in (flow.reason or "")


async def test_a_change_holds_for_requests_on_the_way_and_for_those_after_them(bench: Bench) -> None:
    guest = bench.guests[0]
    allowed = {"to": ["api.example.com"]}

    def connect() -> socket.socket:
        return socket.create_connection((OTHER, 80), timeout=15)

    await bench.admit(guest, {"rules": [allowed]})
    with await guest.run(connect) as busy, await guest.run(connect) as idle:
        idle.sendall(b"GET /before HTTP/1.1\r\nHost: api.example.com\r\n\r\n")
        answer = b""
        while not answer.endswith(b"/before\n"):
            answer += await guest.run(idle.recv, 1000)
        busy.sendall(b"GET /never HTTP/1.1\r\nHost: api.example.com\r\n\r\n")
        await bench.internet.wait(lambda seen: any(b"/never" in head for head in seen.requests))
        await bench.admit(guest, {"rules": [allowed, {"to": [f"{WEB}/32"], "action": "deny"}]})
        with pytest.raises(ConnectionResetError):
            await guest.run(busy.recv, 1000)
        idle.sendall(b"GET /after HTTP/1.1\r\nHost: api.example.com\r\n\r\n")
        answer = await guest.run(idle.recv, 10_000)
        assert answer.startswith(b"HTTP/1.1 403 ")
    assert not any(b"/after" in head for head in bench.internet.seen.requests)


async def test_what_was_approved_stays_when_the_policy_changes_around_it(bench: Bench) -> None:
    guest, ca = bench.guests[0], bench.internet.authority.file
    asked = {"to": ["api.example.com"], "action": "ask"}
    await bench.admit(guest, {"rules": [asked]})
    opening = asyncio.create_task(guest.run(tls, ca, "api.example.com"))
    approval = await bench.until(lambda: next(iter(bench.approvals), None))
    await bench.client.decide(approval.id, Decision(decision="allow"))
    with await opening as spliced:
        await bench.admit(guest, {"rules": [asked, {"to": ["good.example.com"]}]})
        spliced.sendall(b"GET / HTTP/1.1\r\nHost: api.example.com\r\n\r\n")
        assert b"200 OK" in await guest.run(spliced.recv, 1000)


async def test_sandboxes_are_judged_each_by_its_own_policy(bench: Bench) -> None:
    one, other = bench.guests
    await bench.admit(one, {"rules": [{"to": ["api.example.com"]}]})
    await bench.admit(other, {"rules": [{"to": ["good.example.com"]}]})
    assert [(await guest.run(get, name))[0] for guest in (one, other) for name in ("api.example.com", "good.example.com")] == [200, 403, 403, 200]


async def test_what_names_no_server_is_refused_where_some_names_are_denied(bench: Bench) -> None:
    """The address of a denied name may be known by heart."""
    guest, ca = bench.guests[0], bench.internet.authority.file
    denied = {"to": ["evil.example.net"], "action": "deny"}
    await bench.admit(guest, {"default": "public", "rules": [denied]})
    with pytest.raises(ssl.SSLError, match=r"(?i)access denied"):
        await guest.run(lambda: tls(ca, None, address=OTHER))
    assert "names no server" in ((await bench.flow(kind="tls", address=OTHER)).reason or "")
    status, body, _ = await guest.run(lambda: get(OTHER, address=OTHER))
    assert status == 403
    assert "names no server" in error(body)["message"]
    assert (await guest.run(get, "api.example.com"))[0] == 200
    assert not any(OTHER in seen for seen in bench.internet.seen.connections)
    # The same when it is a rule that opens everything, also where the requests are read.
    for everything in ({"to": ["*"]}, {"to": ["0.0.0.0/0"]}, {"to": ["*"], "inspect": True}):
        await bench.admit(guest, {"rules": [everything, denied]})
        if "inspect" not in everything:
            with pytest.raises(ssl.SSLError, match=r"(?i)access denied"):
                await guest.run(lambda: tls(ca, None, address=OTHER))
        assert (await guest.run(lambda: get(OTHER, address=OTHER)))[0] == 403
        assert (await guest.run(get, "api.example.com"))[0] == 200
    assert b" 403 " in await guest.run(nameless, bench.authority.ensure(), f"GET / HTTP/1.1\r\nHost: {OTHER}\r\n\r\n".encode())
    assert b" 403 " in await guest.run(nameless, bench.authority.ensure(), b"GET / HTTP/1.1\r\nHost: evil.example.net\r\n\r\n")
    assert not any(OTHER in seen for seen in bench.internet.seen.connections)
    await bench.admit(guest, {"default": "public", "rules": [denied, {"to": [f"{OTHER}/32"]}]})
    (await guest.run(lambda: tls(ca, None, address=OTHER))).close()
    assert (await guest.run(lambda: get(OTHER, address=OTHER)))[0] == 200


# Rules on content, secrets

SECRET = "sk-live-0123456789/+abc"


async def test_a_secret_is_used_and_never_seen(bench: Bench) -> None:
    guest, ours = bench.guests[0], bench.authority.ensure()
    injecting = {"to": ["api.example.com"], "inject": {"Authorization": "Bearer {{TOKEN}}", "X-Plain": "yes"}}
    await bench.admit(guest, {"rules": [injecting, {"to": ["good.example.com"]}]}, {"TOKEN": SECRET})
    bench.internet.secret_echo = f"data: {SECRET} ; {SECRET}".encode()
    status, body, headers = await guest.run(
        lambda: get_tls(ours, "api.example.com", "/echo", headers={"authorization": "mine", "Accept-Encoding": "gzip", "Range": "bytes=0-4"})
    )
    assert status == 200
    assert SECRET.encode() not in body
    assert b"Authorization: Bearer ***********************\r\n" in body
    head = bench.internet.seen.requests[-1].decode()
    assert f"Authorization: Bearer {SECRET}\r\n" in head
    assert "X-Plain: yes" in head
    assert "mine" not in head
    assert "gzip" not in head
    assert "bytes=0-4" not in head
    status, body, headers = await guest.run(get_tls, ours, "api.example.com", "/leak")
    assert body == b"data: " + b"*" * len(SECRET) + b" ; " + b"*" * len(SECRET)
    assert SECRET not in str(headers)
    # Another host gets the request as it is.
    assert SECRET not in (await guest.run(get_tls, bench.internet.authority.file, "good.example.com", "/echo"))[1].decode()
    status, body, _ = await guest.run(lambda: get("api.example.com", "/echo"))
    assert status == 403
    assert "https" in error(body)["message"]
    status, body, _ = await guest.run(get_tls, ours, "api.example.com", "/gzip")
    assert status == 502
    assert b"compressed" in body
    flow = await bench.flow(kind="http", path="/echo", status=200)
    assert (flow.secrets, flow.rule) == (["TOKEN"], "api.example.com")
    assert SECRET not in str(bench.flows)
    assert SECRET not in repr(bench.client._tenants)  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize(
    "answer",
    [
        "HTTP/1.1 200 OK\r\nX Echo: {0}\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX-Echo {0}\r\n\r\n",
        "{0}\r\n\r\n",
        "HTTP/1.1 {0} OK\r\n\r\n",
        "HTTP/1.1 200 {0}\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX-{0}: 1\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 103 Early Hints\r\nLink: {0}\r\nX-{0}: 1\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: {0}\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Encoding: {0}\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: {0}\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{0}\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;x={0}\r\na\r\n0\r\nX-{0}: {0}\r\n\r\n",
        "HTTP/1.1 200 OK\r\n\r\n{0}",
    ],
)
async def test_an_answer_tells_no_secret_wherever_it_stands(bench: Bench, answer: str) -> None:
    """Improper answers too, of which the program is told what is wrong with them."""
    token = "ghp_0123456789abcdef"
    guest, ours = bench.guests[0], bench.authority.ensure()
    await bench.admit(guest, {"rules": [{"to": ["api.example.com"], "inject": {"Authorization": "Bearer {{TOKEN}}"}}]}, {"TOKEN": token})
    bench.internet.secret_echo = answer.format(token).encode()

    def ask() -> bytes:
        with tls(ours, "api.example.com") as connection:
            connection.sendall(b"GET /raw HTTP/1.1\r\nHost: api.example.com\r\nConnection: close\r\n\r\n")
            told = b""
            while piece := connection.recv(65536):
                told += piece
            return told

    told = await guest.run(ask)
    assert told.startswith(b"HTTP/1.1 "), "it is told something"
    assert token.encode() not in told
    flow = await bench.flow(kind="http", path="/raw")
    assert token in bench.internet.seen.requests[-1].decode()
    assert token not in str(flow)


async def test_a_secret_that_is_gone(bench: Bench) -> None:
    guest, ours = bench.guests[0], bench.authority.ensure()
    await bench.admit(guest, {"rules": [{"to": ["api.example.com"], "inject": {"Authorization": "Bearer {{GONE}}"}}]})
    status, body, _ = await guest.run(get_tls, ours, "api.example.com")
    assert status == 403
    assert "GONE" in error(body)["message"]
    assert not bench.internet.seen.requests


async def test_what_is_inspected_is_what_was_named(bench: Bench) -> None:
    guest, ours = bench.guests[0], bench.authority.ensure()
    await bench.admit(guest, {"rules": [{"to": ["api.example.com"], "inspect": True}, {"to": ["good.example.com"]}]})
    assert (await guest.run(get_tls, ours, "api.example.com"))[0] == 200
    status, body, _ = await guest.run(lambda: get_tls(ours, "api.example.com", host="good.example.com"))
    assert status == 403
    assert "good.example.com" in error(body)["message"]
    assert (await guest.run(get_tls, ours, "evil.example.net"))[0] == 403, "a sandbox that trusts us is told in words"
    assert (await guest.run(lambda: get_tls(ours, "api.example.com", method="TRACE")))[0] == 403
    with pytest.raises(ssl.SSLError, match=r"(?i)no application protocol"):
        await guest.run(lambda: tls(ours, "api.example.com", alpn=["h2"]))
    with await guest.run(lambda: tls(ours, "api.example.com", alpn=["h2", "http/1.1"])) as connection:
        assert connection.selected_alpn_protocol() == "http/1.1"


async def test_a_server_without_a_valid_certificate_gets_nothing(bench: Bench) -> None:
    guest, ours = bench.guests[0], bench.authority.ensure()
    bench.internet.authority._contexts["wrong.example.com"] = bench.internet.authority.context("other.example.com")  # pyright: ignore[reportPrivateUsage]
    bench.internet.zone.addresses["wrong.example.com"] = [WEB]
    await bench.admit(guest, {"rules": [{"to": ["wrong.example.com"], "inject": {"Authorization": "Bearer {{TOKEN}}"}}]}, {"TOKEN": SECRET})
    status, body, _ = await guest.run(get_tls, ours, "wrong.example.com")
    assert status == 502
    assert "certificate" in error(body)["message"]
    assert not bench.internet.seen.requests


async def test_requests_by_method_and_path(bench: Bench) -> None:
    guest, ours = bench.guests[0], bench.authority.ensure()
    await bench.admit(
        guest,
        {
            "rules": [
                {"to": ["api.example.com"], "http": {"methods": ["GET"], "path": "/v1/*"}},
                {"to": ["api.example.com"], "http": {"path": "/v1/admin*"}, "action": "deny", "name": "no admin"},
            ]
        },
    )
    for fetch in (lambda *a, **k: get_tls(ours, *a, **k), get):
        assert (await guest.run(lambda: fetch("api.example.com", "/v1/x")))[0] == 200  # noqa: B023
        status, body, _ = await guest.run(lambda: fetch("api.example.com", "/v1/%61dmin/x"))  # noqa: B023
        assert (status, error(body)["details"]["rule"]) == (403, "no admin")
        assert (await guest.run(lambda: fetch("api.example.com", "/v1/x", method="POST")))[0] == 403  # noqa: B023
        assert (await guest.run(lambda: fetch("api.example.com", "/v2/x")))[0] == 403  # noqa: B023


async def test_fixed_answers_and_proxies_of_the_user(bench: Bench) -> None:
    guest, ours = bench.guests[0], bench.authority.ensure()
    rules = [
        {"to": ["api.example.com"], "respond": {"status": 418, "headers": {"X-Tea": "pot"}, "body": "short and stout"}},
        {"to": ["good.example.com"], "proxy": "http://git.example.org"},
        {"to": ["bad.example.com"], "proxy": "http://127.0.0.1:80"},
        {"to": ["private.example.com"], "proxy": f"http://{PRIVATE}"},
    ]
    await bench.admit(guest, {"rules": rules})
    status, body, headers = await guest.run(get_tls, ours, "api.example.com")
    assert (status, body, headers["x-tea"]) == (418, b"short and stout", "pot")
    status, body, _ = await guest.run(get_tls, ours, "good.example.com", "/echo")
    assert status == 200
    assert b"Corral-Original-Url: https://good.example.com/echo" in body
    forged = {"Corral-Original-Url": "https://forged.example.com/", "corral_original_url": "https://forged.example.com/"}
    body = (await guest.run(lambda: get_tls(ours, "good.example.com", "/echo", headers=forged)))[1]
    assert b"forged" not in body
    assert body.count(b"Original-Url") == 1
    assert bench.internet.seen.connections[-1] == (WEB, 80)
    assert (await guest.run(get_tls, ours, "bad.example.com"))[0] == 403
    assert (await guest.run(get_tls, ours, "private.example.com"))[0] == 403
    await bench.admit(guest, {"rules": [*rules, {"to": [PRIVATE]}]})
    assert (await guest.run(get_tls, ours, "private.example.com"))[0] == 200


async def test_websockets_are_relayed_without_secrets(bench: Bench) -> None:
    guest, ours = bench.guests[0], bench.authority.ensure()
    rule = {"to": ["api.example.com"], "inject": {"Authorization": "{{TOKEN}}"}}
    await bench.admit(guest, {"rules": [rule]}, {"TOKEN": SECRET})

    def begin() -> ssl.SSLSocket:
        connection = tls(ours, "api.example.com")
        connection.sendall(
            b"GET /socket HTTP/1.1\r\nHost: api.example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
        )
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += connection.recv(1000)
        assert answer.startswith(b"HTTP/1.1 101")
        return connection

    def talk(said: bytes) -> bytes:
        connection.sendall(said)
        answer = b""
        while len(answer) < len(said):
            answer += connection.recv(1000)
        return answer

    with await guest.run(begin) as connection:
        assert await asyncio.to_thread(talk, b"ping " + SECRET.encode() + b" pong") == b"ping " + b"*" * len(SECRET) + b" pong"
        assert b"deflate" not in bench.internet.seen.requests[-1]
        # With another value: both are masked from then on, in what is open already too.
        await bench.admit(guest, {"rules": [rule]}, {"TOKEN": SECRET[::-1]})
        await bench.client.settled()
        both = f"{SECRET} and {SECRET[::-1]}.".encode()
        assert await asyncio.to_thread(talk, both) == b"*" * len(SECRET) + b" and " + b"*" * len(SECRET) + b"."


async def test_a_redirect_leads_nowhere_new(bench: Bench) -> None:
    guest = bench.guests[0]
    await bench.admit(guest, {"rules": [{"to": ["api.example.com"]}]})
    status, _, headers = await guest.run(get, "api.example.com", f"/redirect?to=http://{PRIVATE}/")
    assert (status, headers["location"]) == (302, f"http://{PRIVATE}/")
    assert (await guest.run(lambda: get(PRIVATE, address=PRIVATE)))[0] == 403


# Asking


async def test_a_connection_waits_for_a_decision(bench: Bench) -> None:
    guest, ca = bench.guests[0], bench.internet.authority.file
    await bench.admit(
        guest, {"rules": [{"to": ["*.example.com"], "action": "ask", "ports": [443]}, {"to": ["git.example.org"], "action": "ask", "ports": [80]}]}
    )
    waiting = asyncio.create_task(guest.run(get_tls, ca, "api.example.com"))
    approval = await bench.until(lambda: next(iter(bench.approvals), None))
    assert (approval.sandbox, approval.name, approval.port, approval.decision) == (guest.sandbox, "api.example.com", 443, None)
    assert await bench.client.approvals() == [approval]
    assert await bench.client.decide(approval.id, Decision(decision="allow", scope="sandbox"))
    assert (await waiting)[0] == 200
    assert (await guest.run(get_tls, ca, "api.example.com"))[0] == 200, "decided for this sandbox"
    assert not await bench.client.decide(approval.id, Decision(decision="deny"))
    refused = asyncio.create_task(guest.run(get, "git.example.org", "/x"))
    approval = await bench.until(lambda: next((a for a in bench.approvals if a.name == "git.example.org"), None))
    assert (approval.method, approval.path) == ("GET", "/x")
    await bench.client.decide(approval.id, Decision(decision="deny"))
    status, body, _ = await refused
    assert status == 403
    assert "not approved" in error(body)["message"]
    assert (await bench.until(lambda: next((a for a in bench.approvals if a.decision == "deny"), None))).scope == "once"


async def test_nobody_decides(bench: Bench) -> None:
    guest = bench.guests[0]
    for default, expected in (("deny", 403), ("allow", 200)):
        await bench.admit(guest, {"rules": [{"to": ["api.example.com"], "action": "ask"}], "ask_timeout": 0.2, "ask_default": default})
        assert (await guest.run(get, "api.example.com"))[0] == expected


async def test_a_new_policy_answers_for_those_who_wait(bench: Bench) -> None:
    guest, ca = bench.guests[0], bench.internet.authority.file
    await bench.admit(guest, {"rules": [{"to": ["api.example.com"], "action": "ask"}]})
    waiting = asyncio.create_task(guest.run(get_tls, ca, "api.example.com"))
    await bench.until(lambda: bool(bench.approvals))
    await bench.admit(guest, {"rules": [{"to": ["api.example.com"]}]})
    assert (await waiting)[0] == 200


async def test_a_rule_about_addresses_asks_about_the_address_whatever_the_program_calls_it(bench: Bench) -> None:
    guest, ca = bench.guests[0], bench.internet.authority.file
    await bench.admit(guest, {"rules": [{"to": ["203.0.113.0/28"], "action": "ask"}]})
    waiting = asyncio.create_task(guest.run(get_tls, ca, "friendly.example.com"))
    approval = await bench.until(lambda: next(iter(bench.approvals), None))
    assert (approval.name, approval.address) == (None, WEB)
    await bench.client.decide(approval.id, Decision(decision="allow", scope="sandbox"))
    assert (await waiting)[0] == 200
    other = asyncio.create_task(guest.run(lambda: get_tls(ca, "friendly.example.com", address=OTHER)))
    approval = await bench.until(lambda: next((a for a in bench.approvals if a.address == OTHER), None))
    await bench.client.decide(approval.id, Decision(decision="deny"))
    with pytest.raises(ssl.SSLError):
        await other


async def test_every_port_waits(bench: Bench) -> None:
    guest = bench.guests[0]
    await bench.admit(guest, {"rules": [{"to": [WEB], "action": "ask"}]})
    waiting = asyncio.create_task(guest.run(lambda: raw(b"hello", port=7)))
    approval = await bench.until(lambda: next(iter(bench.approvals), None))
    assert (approval.address, approval.port, approval.name) == (WEB, 7, None)
    await bench.client.decide(approval.id, Decision(decision="allow"))
    assert await waiting == b"hello"


# Attacks


async def test_names_that_end_early_on_the_wire(bench: Bench) -> None:
    guest = bench.guests[0]
    await bench.admit(guest, {"rules": [{"to": ["*.example.com"]}]})
    for host in (b"evil.example.net..x.example.com", b".example.com", b"evil.example.net\\0.example.com", b"a" * 300 + b".example.com"):
        assert b"403" in (answer := await guest.run(raw, b"GET / HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")) or b" 400 " in answer
    assert (await guest.run(lambda: raw(hello("evil.example.net.y.example.com").replace(b"net.y.", b"net..y"), port=443)))[:2] in (b"", b"\x15\x03")
    assert not bench.internet.seen.connections
    assert not bench.internet.seen.queries


@pytest.mark.parametrize("rule", [{"inspect": True}, {"http": {"methods": ["GET"]}}, {}], ids=["inspected", "by method", "by name"])
async def test_http2_without_tls_is_refused_with_the_reason(bench: Bench, rule: dict[str, Any]) -> None:
    """Its requests are not read, so that it could ask for any host."""
    guest = bench.guests[0]
    await bench.admit(guest, {"rules": [{"to": ["api.example.com"], **rule}]})
    assert (await guest.run(lookup, "api.example.com"))[1] == [WEB]
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"

    def slowly() -> bytes:
        with socket.create_connection((WEB, 80), timeout=15) as connection:
            for at in range(0, len(preface), 8):
                connection.sendall(preface[at : at + 8])
            answer = b""
            while piece := connection.recv(1000):
                answer += piece
            return answer

    for answer in (await guest.run(raw, preface), await guest.run(slowly)):
        assert answer[:9] == b"\0\0\0\4\0\0\0\0\0", "settings"
        length = int.from_bytes(answer[9:12])
        goaway = answer[18 : 18 + length]
        assert (answer[12], goaway[4:8]) == (7, (13).to_bytes(4)), "HTTP_1_1_REQUIRED"
        assert b"HTTP/2 without TLS" in goaway[8:]
    assert not bench.internet.seen.connections
    assert "HTTP/2 without TLS" in ((await bench.flow(kind="tcp", verdict="denied")).reason or "")


async def test_of_an_encrypted_hello_the_outer_name_counts(bench: Bench) -> None:
    guest = bench.guests[0]
    await bench.admit(guest, {"rules": [{"to": ["api.example.com"]}]})
    assert (await guest.run(lambda: raw(with_ech(hello("api.example.com")), port=443))).startswith(b"\x16\3"), "a server's hello"
    assert (await guest.run(lambda: raw(with_ech(hello("evil.example.net")), port=443))).startswith(b"\x15\3"), "an alert"
    assert (await bench.flow(kind="tls", verdict="denied")).name == "evil.example.net"
    # Where requests are read, TLS ends here: whatever the inner hello says is seen by nobody.
    await bench.admit(guest, {"rules": [{"to": ["api.example.com"], "inspect": True}]})
    seen = len(bench.internet.seen.connections)
    assert (await guest.run(lambda: raw(with_ech(hello("api.example.com")), port=443))).startswith(b"\x16\3")
    assert len(bench.internet.seen.connections) == seen
    assert (await guest.run(lookup, "api.example.com", 65))[1] == [], "keys for it are in no answer"


async def test_a_hello_in_many_records_and_segments_is_judged_as_a_whole(bench: Bench) -> None:
    guest = bench.guests[0]
    await bench.admit(guest, {"rules": [{"to": ["api.example.com"]}]})

    def slowly(name: str, record: int, segment: int) -> bytes:
        message = hello(name)[5:]
        pieces = [message[at : at + record] for at in range(0, len(message), record)]
        data = b"".join(b"\x16\3\1" + len(piece).to_bytes(2) + piece for piece in pieces)
        with socket.create_connection((WEB, 443), timeout=15) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for at in range(0, len(data), segment):
                connection.sendall(data[at : at + segment])
            return connection.recv(3)

    for record, segment in ((1, 7), (40, 1), (97, 500)):
        assert (await guest.run(slowly, "api.example.com", record, segment)) == b"\x16\3\3", "a server's hello"
        assert (await guest.run(slowly, "evil.example.net", record, segment)) == b"\x15\3\3", "an alert"


async def test_what_follows_a_refused_upgrade_is_a_request_like_any_other(bench: Bench) -> None:
    """Who takes the word of the client for it would pass on what comes after unread."""
    guest = bench.guests[0]
    await bench.admit(guest, {"rules": [{"to": ["api.example.com"], "http": {"path": "/open*"}}]})
    for protocol in (b"websocket", b"h2c", b"WebSocket, h2c", b"TLS/1.0"):
        first = (
            b"GET /open HTTP/1.1\r\nHost: api.example.com\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: %b\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"
        )
        for version in (b"", b"Sec-WebSocket-Version: 1\r\n"):
            hidden = b"GET /hidden HTTP/1.1\r\nHost: api.example.com\r\n\r\n"
            answer = await guest.run(raw, first % protocol + version + b"\r\n" + hidden)
            assert b"200 OK" in answer, protocol
            assert b"/hidden\n" not in answer, protocol
    assert not any(b"/hidden" in head for head in bench.internet.seen.requests)


async def test_a_name_that_points_inside_later(bench: Bench) -> None:
    """DNS rebinding: the first answer is public, the next one is not."""
    guest, zone = bench.guests[0], bench.internet.zone
    zone.addresses["rebound.example.com"] = [WEB]
    zone.ttl = 1
    await bench.admit(guest, {"rules": [{"to": ["rebound.example.com"]}]})
    assert (await guest.run(lookup, "rebound.example.com"))[1] == [WEB]
    assert await guest.run(lambda: raw(b"hello", port=7)) == b"hello"
    zone.addresses["rebound.example.com"] = [PRIVATE]

    def again() -> str:
        while (found := lookup("rebound.example.com")[1]) == [WEB]:
            select.select([], [], [], 0.1)
        return found[0]

    async with asyncio.timeout(20):
        assert await guest.run(again) == "192.0.0.1"
    for port in (7, 25):
        with pytest.raises(OSError, match="No route to host"):
            await guest.run(lambda port=port: socket.create_connection((PRIVATE, port), timeout=5))
    status, body, _ = await guest.run(lambda: get("rebound.example.com", address=PRIVATE))
    assert status == 403
    assert "points nowhere allowed" in error(body)["message"]
    assert (await guest.run(lambda: raw(hello("rebound.example.com"), address=PRIVATE, port=443))).startswith(b"\x15\3")
    assert all(address != PRIVATE for address, _ in bench.internet.seen.connections)


async def test_many_slow_connections_hold_little_memory(bench: Bench) -> None:
    """Each asks for more than it takes, over plain HTTP and, one in ten, over TLS that is ended."""
    guest = bench.guests[0]
    await bench.admit(guest, {"rules": [{"to": ["good.example.com"]}, {"to": ["api.example.com"], "inspect": True}], "budget": {"connections": 2000}})
    assert bench.process is not None
    status = Path(f"/proc/{bench.process.pid}/status")
    authority = bench.authority.ensure()

    def resident() -> int:
        """MiB."""
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmRSS:")) >> 10

    def opened(number: int) -> socket.socket:
        name = "api.example.com" if number % 10 == 0 else "good.example.com"
        while True:
            plain = socket.socket()
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            plain.settimeout(60)
            try:
                plain.connect((WEB, 443 if number % 10 == 0 else 80))
            except OSError:
                # So many each second are let through by the switch.
                plain.close()
                select.select([], [], [], 0.1)
                continue
            if number % 10:
                connection = plain
            else:
                connection = ssl.create_default_context(cafile=str(authority)).wrap_socket(plain, server_hostname=name)
            connection.sendall(f"GET /bytes?n=10000000 HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
            return connection

    before = resident()
    connections = await guest.run(lambda: [opened(number) for number in range(1000)])
    try:
        await bench.internet.wait(lambda seen: len(seen.requests) >= 1000)
        received = -1
        while received != (received := (await bench.client.totals(guest.sandbox))[1]):  # until all of them stand still
            await asyncio.to_thread(select.select, [], [], [], 1)
        assert resident() - before < 100, "MiB"
        other = bench.guests[1]
        await bench.admit(other, {"rules": [{"to": ["good.example.com"]}]})
        assert len((await other.run(get, "good.example.com", "/bytes?n=20000000"))[1]) == 20_000_000, "nobody else waits for them"
        # What is taken in the end is whole.
        assert sum(len(connections[1].recv(65536)) for _ in range(10)) > 0
    finally:
        for connection in connections:
            connection.close()


async def test_silence_and_slowness_change_nothing(bench: Bench) -> None:
    """Those who dribble are let go after a while; nobody else waits for them, and none of them gets anywhere."""
    guest, ca = bench.guests[0], bench.internet.authority.file
    await bench.admit(guest, {"default": "public", "rules": [{"to": ["evil.example.net"], "action": "deny"}]})
    opening = hello("evil.example.net")

    def slow() -> bytes:
        """Half a hello at first, the rest a little later."""
        with socket.create_connection((OTHER, 443), timeout=40) as connection:
            for piece in (opening[:3], opening[3:50], opening[50:]):
                connection.sendall(piece)
                select.select([connection], [], [], 0.5)
            return connection.recv(100)

    def dribbling(opening: bytes, port: int) -> bytes:
        with socket.create_connection((OTHER, port), timeout=60) as connection:
            try:
                connection.sendall(opening)
                while not select.select([connection], [], [], 1)[0]:
                    connection.sendall(b"a")
                return connection.recv(100)
            except OSError:
                return b""

    dribblers = [
        asyncio.create_task(guest.run(dribbling, opening, port))
        for opening, port in ((opening[:20], 443), (b"GET / HTTP/1.1\r\nHost: evil.exam", 80), (b"G", 80))
        for _ in range(5)
    ]
    assert (await guest.run(slow)).startswith(b"\x15\x03"), "an alert"
    assert (await guest.run(get_tls, ca, "api.example.com"))[0] == 200
    assert all(b"200" not in answer for answer in await asyncio.gather(*dribblers))
    assert all(address == WEB for address, _ in bench.internet.seen.connections)


async def test_connections_are_counted(bench: Bench) -> None:
    one, other = bench.guests
    await bench.admit(one, {"rules": [{"to": ["api.example.com"]}], "budget": {"connections": 50}})
    await bench.admit(other, {"rules": [{"to": ["api.example.com"]}]})

    def flood() -> list[socket.socket]:
        return [socket.create_connection((WEB, 80), timeout=15) for _ in range(60)]

    flooding = await one.run(flood)
    try:
        reset = 0
        for connection in flooding:
            try:
                connection.sendall(b"GET / HTTP/1.1\r\nHost: api.example.com\r\n\r\n")
                reset += not connection.recv(1000)
            except OSError:
                reset += 1
        assert reset == 10
        assert (await other.run(get, "api.example.com"))[0] == 200
    finally:
        for connection in flooding:
            connection.close()
    assert (await bench.flow(kind="tcp", verdict="denied")).reason == "too many connections at once"
    async with asyncio.timeout(20):
        while True:  # until those that were closed have been noticed
            try:
                assert (await one.run(get, "api.example.com"))[0] == 200
            except ConnectionResetError:
                continue
            break


async def test_a_thousand_connections_at_once(bench: Bench) -> None:
    guest, ca = bench.guests[0], bench.internet.authority.file
    await bench.admit(guest, {"rules": [{"to": ["api.example.com"]}], "budget": {"connections": 2000}})
    request = b"GET /%d HTTP/1.1\r\nHost: api.example.com\r\n\r\n"

    def all_at_once() -> int:
        connections = []
        for number in range(1000):
            while True:
                try:
                    connections.append(socket.create_connection((WEB, 80), timeout=60))
                    break
                except OSError:
                    # So many each second are let through by the switch.
                    select.select([], [], [], 0.1)
            connections[-1].sendall(request % number)
        good = sum(b"200 OK" in connection.recv(1000) for connection in connections)
        for connection in connections:
            connection.close()
        return good

    assert await guest.run(all_at_once) == 1000
    assert (await guest.run(get_tls, ca, "api.example.com"))[0] == 200


async def test_a_budget_of_bytes_ends_it(bench: Bench) -> None:
    guest, ca = bench.guests[0], bench.internet.authority.file
    await bench.admit(guest, {"rules": [{"to": ["api.example.com"]}], "budget": {"bytes": 1_000_000}})
    with pytest.raises((http.client.IncompleteRead, OSError)):
        await guest.run(get_tls, ca, "api.example.com", "/bytes?n=5000000")
    with pytest.raises((http.client.HTTPException, OSError)):
        await guest.run(get, "api.example.com")
    sent, received = await bench.client.totals(guest.sandbox)
    assert 1_000_000 <= sent + received < 4_000_000


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pieces=st.lists(
        st.one_of(
            st.sampled_from(
                [
                    b"GET / HTTP/1.1\r\n",
                    b"Host: api.example.com\r\n",
                    b"Host: evil.example.net\r\n",
                    b"\r\n",
                    b"Content-Length: 3\r\n",
                    b"Transfer-Encoding: chunked\r\n",
                ]
            ),
            st.sampled_from(
                [
                    b"Connection: upgrade\r\nUpgrade: websocket\r\n",
                    b"Content-Length: +3\r\n",
                    b"0\r\n\r\n",
                    b"abc",
                    b"X: y\r\n z\r\n",
                    b"\n\n",
                    b"\0",
                    b"\x16\x03\x01",
                ]
            ),
            st.binary(max_size=20),
        ),
        max_size=12,
    )
)
async def test_whatever_comes_as_a_request(bench: Bench, pieces: list[bytes]) -> None:
    guest = bench.guests[0]
    await bench.admit(guest, {"rules": [{"to": ["api.example.com"]}]})
    await guest.run(raw, b"".join(pieces))
    assert all(b"evil" not in head for head in bench.internet.seen.requests)
    assert all(address == WEB for address, _ in bench.internet.seen.connections)
    assert (await guest.run(get, "api.example.com"))[0] == 200
    assert not bench.errors()


# Ends and beginnings


async def test_what_an_earlier_sandbox_has_left_in_queues_is_not_the_next_ones(bench: Bench) -> None:
    """Addresses of slots are used again, and the process may be slow to look at what has come."""
    guest = bench.guests[0]
    await bench.admit(guest, {"rules": [{"to": ["good.example.com"]}]}, sandbox="sb-former")
    before = await guest.run(lambda: socket.create_connection(("192.0.0.1", 53), timeout=15))
    query = b"\0\x21\x12\x34\1\0\0\1\0\0\0\0\0\0\3api\7example\3com\0\0\1\0\1"
    with before:
        before.sendall(query)
        assert before.recv(100)[2:4] == b"\x12\x34"
        assert bench.process is not None
        bench.process.send_signal(signal.SIGSTOP)
        try:

            def ask() -> tuple[socket.socket, ...]:
                web, stream = socket.create_connection((WEB, 80), timeout=15), socket.create_connection(("192.0.0.1", 53), timeout=15)
                datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                datagram.connect(("192.0.0.1", 53))
                datagram.settimeout(1)
                web.sendall(b"GET /queued HTTP/1.1\r\nHost: api.example.com\r\n\r\n")
                stream.sendall(query)
                datagram.send(query[2:])
                return web, stream, datagram

            web, stream, datagram = await guest.run(ask)
            await bench.admit(guest, {"rules": [{"to": ["api.example.com"]}]}, sandbox="sb-next")
            before.sendall(query)
        finally:
            bench.process.send_signal(signal.SIGCONT)
        with web, stream, datagram:
            with pytest.raises(ConnectionResetError):
                await guest.run(web.recv, 100)
            for connection in (stream, before):
                with contextlib.suppress(ConnectionResetError):
                    assert await guest.run(connection.recv, 100) == b""
            with pytest.raises(TimeoutError):
                await guest.run(datagram.recv, 100)
    assert (await guest.run(get, "api.example.com", "/asked"))[0] == 200
    await bench.client.settled()
    assert {flow.path for flow in bench.flows if flow.sandbox == "sb-next"} == {"/asked"}
    assert not any(b"/queued" in head for head in bench.internet.seen.requests)


async def test_an_answer_that_comes_too_late_is_told_to_nobody(bench: Bench) -> None:
    guest, zone = bench.guests[0], bench.internet.zone
    zone.late.add("late.example.com")
    zone.addresses["late.example.com"] = [WEB]
    former = await bench.admit(guest, {"rules": [{"to": ["late.example.com"], "ports": [7]}]}, sandbox="sb-former")

    def ask() -> socket.socket:
        connection = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        connection.settimeout(1)
        connection.sendto(b"\x12\x34\1\0\0\1\0\0\0\0\0\0\4late\7example\3com\0\0\1\0\1", ("192.0.0.1", 53))
        return connection

    with await guest.run(ask) as connection:
        await bench.internet.wait(lambda seen: ("late.example.com", 1) in seen.queries)
        await bench.admit(guest, {"rules": [{"to": ["good.example.com"]}]}, sandbox="sb-next")
        await bench.client.settled()
        assert bench.tables is not None
        bench.tables.end_connections(former.generation)
        bench.internet.catch_up()
        assert (await guest.run(lookup, "good.example.com"))[1] == [WEB]
        with pytest.raises(TimeoutError):
            await guest.run(connection.recv, 100)


async def test_another_server_takes_over(bench: Bench) -> None:
    guest, other = bench.guests
    tenant = await bench.admit(guest, {"rules": [{"to": ["api.example.com"]}]})
    await bench.admit(other, {"rules": [{"to": ["api.example.com"]}]})
    bench.client.close()
    assert (await guest.run(get, "api.example.com", "/meanwhile"))[0] == 200, "nobody is there, and it goes on"
    bench.client = bench.new_client()
    known = await bench.client.connect(bench.socket, TABLE, bench.sockets)
    assert tenant.generation in known
    await bench.client.retain([tenant.generation])
    assert (await bench.flow(kind="http", path="/meanwhile")).status == 200
    assert (await guest.run(get, "api.example.com"))[0] == 200
    with pytest.raises(OSError):
        await other.run(get, "api.example.com")


async def test_another_process_takes_over(bench: Bench) -> None:
    guest = bench.guests[0]
    await bench.admit(guest, {"rules": [{"to": ["api.example.com"]}, {"to": ["git.example.org"], "action": "ask", "ports": [80]}]})
    waiting = asyncio.create_task(guest.run(get, "git.example.org"))
    approval = await bench.until(lambda: next(iter(bench.approvals), None))
    await bench.client.decide(approval.id, Decision(decision="allow", scope="sandbox"))
    assert (await waiting)[0] == 200
    assert bench.process is not None
    bench.lost.clear()
    bench.process.kill()
    bench.process.wait()
    await bench.lost.wait()
    with pytest.raises(OSError):
        await guest.run(get, "api.example.com")
    with pytest.raises(OSError):
        await guest.run(lookup, "api.example.com")
    bench.socket.unlink()
    await bench.start()
    assert await bench.client.connect(bench.socket, TABLE, bench.sockets) == frozenset()
    assert (await guest.run(get, "api.example.com"))[0] == 200
    assert (await guest.run(get, "git.example.org"))[0] == 200, "what was decided holds"
    assert (await guest.run(get, "evil.example.net"))[0] == 403


async def test_learning(bench: Bench) -> None:
    guest, ca = bench.guests[0], bench.internet.authority.file
    tenant = await bench.admit(guest, {"default": "public", "learn": True})
    await guest.run(get_tls, ca, "api.example.com")
    await guest.run(get, "good.example.com")
    await guest.run(lookup, "evil.example.net")
    await bench.flow(kind="tls")
    await bench.flow(kind="http")
    proposal = propose(tenant.policy, bench.flows)
    assert [(rule.to, rule.ports) for rule in proposal.rules] == [(["api.example.com"], ["443"]), (["good.example.com"], ["80"])]
    await bench.admit(guest, proposal)
    assert (await guest.run(get_tls, ca, "api.example.com"))[0] == 200
    assert (await guest.run(get, "evil.example.net"))[0] == 403
