"""What previews let pass while it is said, what ends when access is taken back, and how many and how slow a client may be."""

from __future__ import annotations

import contextlib
import resource
import socket
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.api import Api
from harness.previewed import PORT, Site, serve
from harness.server import Server
from harness.web import Wire, wire


def until_end(line: Wire) -> bytes:
    """What comes, until the other side ends or breaks off."""
    with contextlib.suppress(ConnectionResetError):
        return line.rest()
    return b""


# While it is said


def test_events_arrive_one_by_one(site: Site) -> None:
    with wire(site.edge) as line:
        line.say(f"GET /wait HTTP/1.1\r\nHost: {site.host}\r\n{site.key}\r\n\r\n".encode())
        told = b""
        while not told.endswith(b"data: 0\n\n"):
            told += line.some(1)
        # The server says the other one only once it is asked to.
        assert site.get("/go-on", site.key).status == 204
        assert line.rest() == b"data: 1\n\n"


def test_an_upload_and_its_answer_go_on_side_by_side(site: Site) -> None:
    with wire(site.edge) as line:
        line.say(f"POST /count HTTP/1.1\r\nHost: {site.host}\r\n{site.key}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        told = b""
        for word in (b"one", b"three", b"eleven"):
            line.say(b"%x\r\n%s\r\n" % (len(word), word))
            while not told.endswith(word.upper() + b"\r\n"):
                told += line.some(1)
        line.say(b"0\r\n\r\n")
        assert line.rest() == b"0\r\n\r\n"


def test_large_heads_pass_both_ways_and_a_servers_larger_ones_are_told_of(site: Site) -> None:
    most = 60_000
    told = site.get("/", site.key, f"X-Large: {'a' * most}").json
    assert dict(told["headers"])["x-large"] == "a" * most
    many = [f"X-{number}: {number}" for number in range(240)]
    assert {tuple(field) for field in site.get("/", site.key, *many).json["headers"]} >= {(f"x-{number}", str(number)) for number in range(240)}
    assert len(site.get(f"/large?{most}", site.key).header("x-large") or "") == most
    assert site.get(f"/large?{1 << 16}", site.key).code == "bad_gateway"


@pytest.mark.parametrize("masked", [None, "localhost:3000"])
def test_where_a_server_sends_a_client_is_where_the_client_finds_it(site: Site, masked: str | None) -> None:
    site.api.ok("PUT", site.path, json={"host": masked or ""})
    told = masked or site.host
    by_path = f"/v1/sandboxes/{site.id}/ports/{PORT}"
    try:
        assert ["host", told] in site.get("/", site.key).json["headers"]
        for at, seen in {"/x?y": "/x?y", f"http://{told}/x?y": f"http://{site.host}/x?y", "http://example.com/x": "http://example.com/x", "x": "x"}.items():
            assert site.get(f"/go-to?{at}", site.key).header("location") == seen, at
        edge = f"corral.localhost:{site.edge}"
        for at, seen in {"/x": f"{by_path}/x", f"http://{masked or edge}/x": f"http://{edge}{by_path}/x", f"{by_path}/x": f"{by_path}/x"}.items():
            assert site.get(f"{by_path}/go-to?{at}", site.key, host=edge).header("location") == seen, at
    finally:
        site.api.ok("PUT", site.path, json={"host": ""})


# Who may see it


def kept_of(site: Site, link: str) -> str:
    """The cookie that a browser keeps of a link."""
    return str(site.get(link, "Accept: text/html").header("set-cookie"))


def test_a_browser_keeps_several_links_of_a_port_and_others_cookies_shut_nobody_out(site: Site) -> None:
    docs, app = kept_of(site, site.link(path="/docs")), kept_of(site, site.link(path="/app/"))
    assert ("; Path=/docs;" in docs, "; Path=/app;" in app) == (True, True)
    assert "; Path=/;" in kept_of(site, site.link())
    assert "; Path=/;" in kept_of(site, site.link(path="/a;b"))
    good = docs.partition(";")[0]
    bad = "corral_preview=9999999999.Lw." + "A" * 43
    for cookies in (f"{bad}; {good}", f"{good}; {bad}", f"{bad}; {app.partition(';')[0]}; {good}"):
        assert site.get("/docs/x", f"Cookie: {cookies}").status == 200
    assert site.get("/docs/x", f"Cookie: {bad}").code == "forbidden"


def test_no_page_reads_the_signature_that_opened_it(site: Site) -> None:
    link = site.link()
    cookie = kept_of(site, link).partition(";")[0]
    people = "Accept: text/html"
    for fields in ((people,), (people, f"Cookie: {cookie}"), (people, site.key)):
        assert site.get(link, *fields).header("location") == "/", fields
    site.public(True)
    try:
        assert site.get(link, people).header("location") == "/"
        assert site.get("/", people).status == 200
    finally:
        site.public(False)
    told = site.get("/", f"Cookie: {cookie}", f"Referer: http://{site.host}{link}&q=1").json
    assert ["referer", f"http://{site.host}/?q=1"] in told["headers"]


def test_ports_may_be_public_from_the_start(admin: Api) -> None:
    for public, shown in (([PORT], 401), ("all", 502)):
        made = serve(admin, public_ports=public)
        assert made.get().json["me"] == made.id
        assert made.get(host=f"9-{made.id}.corral.localhost").status == shown
        admin.delete(made.id)


@pytest.fixture
def taken(admin: Api) -> Iterator[tuple[Site, str, dict[str, Wire]]]:
    """What is under way of each who was let in: by a key that is revoked later, a token, a cookie, a link; and by the admin's key."""
    made = serve(admin)
    key = admin.ok("POST", "/v1/keys", status=201, json={"name": "leaves"})
    upgrade = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==")
    token = f"Corral-Token: {admin.ok('GET', f'/v1/sandboxes/{made.id}/preview-token')['token']}"
    link, domain = made.link(), f"corral.localhost:{made.edge}"
    ways: dict[str, tuple[str, str, tuple[str, ...]]] = {
        "key": ("/ws", made.host, (f"Corral-Key: {key['value']}",)),
        "tunnel by key": (f"/v1/sandboxes/{made.id}/tunnels/{PORT}", domain, (f"Corral-Key: {key['value']}",)),
        "token": ("/ws", made.host, (token,)),
        "tunnel": (f"/v1/sandboxes/{made.id}/tunnels/{PORT}", domain, (token,)),
        "cookie": ("/ws", made.host, (f"Cookie: {kept_of(made, link).partition(';')[0]}",)),
        "link": ("/ws" + link[1:], made.host, ()),
        "admin": ("/ws", made.host, (made.key,)),
    }
    with contextlib.ExitStack() as stack:
        lines = {name: stack.enter_context(wire(made.edge)) for name in (*ways, "answer")}
        for name, (target, host, fields) in ways.items():
            assert lines[name].ask("GET", target, host, *fields, *upgrade).status == 101, name
        lines["answer"].say(f"GET /wait HTTP/1.1\r\nHost: {made.host}\r\n{token}\r\n\r\n".encode())
        assert lines["answer"].some(4) == b"HTTP"
        yield made, f"/v1/keys/{key['id']}", lines
    admin.delete(made.id)


def lives(line: Wire) -> bool:
    line.say(b"ping")
    return line.some(4) == b"ping"


def test_what_is_open_ends_when_the_token_is_another(taken: tuple[Site, str, dict[str, Wire]], admin: Api) -> None:
    site, _, lines = taken
    admin.ok("POST", f"/v1/sandboxes/{site.id}/preview-token/rotate")
    for name in ("token", "tunnel", "cookie", "link", "answer"):
        assert b"data: 1" not in until_end(lines[name]), name
    assert lives(lines["key"])
    assert lives(lines["admin"])


def test_what_is_open_ends_when_its_key_is_revoked(taken: tuple[Site, str, dict[str, Wire]], admin: Api) -> None:
    _, key, lines = taken
    admin.ok("DELETE", key, status=204)
    for name in ("key", "tunnel by key"):
        assert until_end(lines[name]) == b"", name
    for name in ("token", "cookie", "link", "admin"):
        assert lives(lines[name]), name


def test_what_is_open_ends_when_the_port_is_private_again(admin: Api) -> None:
    site = serve(admin, public_ports=[PORT])
    with wire(site.edge) as theirs, wire(site.edge) as ours:
        upgrade = ("Connection: Upgrade", "Upgrade: websocket")
        assert theirs.ask("GET", "/ws", site.host, *upgrade).status == 101
        assert ours.ask("GET", "/ws", site.host, site.key, *upgrade).status == 101
        site.api.ok("PUT", site.path, json={"host": "another"})
        assert lives(theirs)
        site.public(False)
        assert until_end(theirs) == b""
        assert lives(ours)
    admin.delete(site.id)


# How slow, how many, how strange

MANY = r"""
import asyncio, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (8192, 8192))
async def serve(reader, writer):
    while await reader.readuntil(b"\r\n\r\n"): writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
async def main():
    async with await asyncio.start_server(serve, "127.0.0.1", 9000, backlog=1024):
        print("listening", flush=True)
        await asyncio.Future()
asyncio.run(main())
"""


def test_more_connections_than_a_sandbox_may_have_are_refused_until_some_end(site: Site, admin: Api) -> None:
    process = admin.ok("POST", f"/v1/sandboxes/{site.id}/processes", status=201, json={"argv": ["python3", "-c", MANY]})["id"]
    with admin.events("GET", f"/v1/sandboxes/{site.id}/processes/{process}/output") as events:
        assert next(events)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8192)), hard))
    host = f"9000-{site.id}.corral.localhost:{site.edge}"
    lines: list[socket.socket] = []
    try:
        for _ in range(2048):
            lines.append(socket.create_connection(("127.0.0.1", site.edge), timeout=60))
            lines[-1].sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\n{site.key}\r\n\r\n".encode())
            assert lines[-1].recv(4096).startswith(b"HTTP/1.1 200 ")
        refused = site.get("/", site.key, host=host)
        assert (refused.status, refused.code, refused.header("retry-after")) == (429, "too_many_connections", "5")
        assert "close some" in refused.json["error"]["hint"]
        lines.pop().close()
        while (answer := site.get("/", site.key, host=host)).status == 429:
            pass
        assert answer.status == 200
    finally:
        for line in lines:
            line.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        admin.ok("DELETE", f"/v1/sandboxes/{site.id}/processes/{process}", status=204)


@pytest.mark.slow
def test_a_head_that_does_not_end_is_answered_after_a_while(site: Site) -> None:
    with wire(site.edge) as silent, wire(site.edge) as trickling, wire(site.edge) as mute:
        for line in (silent, trickling):
            line.say(f"GET / HTTP/1.1\r\nHost: {site.host}\r\n".encode())
        with contextlib.suppress(OSError):
            while not silent_has_answered(silent):
                trickling.say(b"X: 1\r\n")
        for line in (silent, trickling):
            answer = line.hear()
            assert (answer.status, answer.code, answer.header("connection")) == (408, "timeout", "close")
        assert mute.rest() == b""
        assert site.get("/", site.key).status == 200


def silent_has_answered(line: Wire) -> bool:
    """Within a second."""
    line.socket.settimeout(1)
    try:
        return bool(line.socket.recv(1, socket.MSG_PEEK))
    except TimeoutError:
        return False
    finally:
        line.socket.settimeout(60)


PIECES = st.sampled_from(
    [
        "GET / HTTP/1.1\r\n", "POST / HTTP/1.1\r\n", "HEAD /x HTTP/1.0\r\n", "GET http://{host}/ HTTP/1.1\r\n", "OPTIONS * HTTP/1.1\r\n", "CONNECT {host} HTTP/1.1\r\n",
        "PRI * HTTP/2.0\r\n", "Host: {host}\r\n", "Host: {host}\r\n{key}\r\n", "{key}\r\n", "Content-Length: 5\r\n", "Content-Length: 0\r\n", "content-length : 5\r\n",
        "Transfer-Encoding: chunked\r\n", "Transfer-Encoding:\tchunked\r\n", "Connection: Upgrade\r\nUpgrade: websocket\r\n", "Connection: close\r\n", "Expect: 100-continue\r\n",
        " folded\r\n", "\r\n", "\r\n\r\n", "\n", "\0", "\r", "5\r\nhello\r\n", "0\r\n\r\n", "hello", "GET /smuggled HTTP/1.1\r\nHost: {host}\r\n\r\n", "Corral-Sandbox: x\r\n",
    ]
)  # fmt: skip


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(PIECES, st.binary(max_size=20).map(lambda data: data.decode("latin-1"))), max_size=14))
def test_whatever_is_said_is_answered_or_ended_and_nobody_else_notices(site: Site, pieces: list[str]) -> None:
    text = "".join(pieces).replace("{host}", site.host).replace("{key}", site.key)
    with wire(site.edge) as beside, wire(site.edge) as line:
        before = beside.ask("GET", "/", site.host, site.key).json["peer"]
        with contextlib.suppress(OSError):
            line.say(text.encode("latin-1"))
            line.socket.shutdown(socket.SHUT_WR)
        heard = until_end(line)
        assert not heard or heard.startswith(b"HTTP/1."), heard[:200]
        # What nobody has shown a key with reaches no server.
        assert b'"target": "/smuggled' not in heard
        assert beside.ask("GET", "/", site.host, site.key).json["peer"] == before


# Awake


def test_a_held_sandbox_is_no_idle_one_whatever_becomes_of_the_server(admin: Api, server: Server) -> None:
    held, other = (admin.create(idle_timeout=1)["id"] for _ in range(2))
    until = admin.ok("POST", f"/v1/sandboxes/{held}/hold", json={"seconds": 600, "reason": "a demo"})["until"]

    def ended(sandbox: str) -> None:
        with admin.events("GET", "/v1/events", params={"sandbox": sandbox, "kind": "sandbox.terminated", "after": "0", "follow": True}) as events:
            assert next(events)
        assert admin.ok("GET", f"/v1/sandboxes/{sandbox}")["reason"] == "idle"

    ended(other)
    assert admin.ok("GET", f"/v1/sandboxes/{held}")["state"] == "running"
    admin.ok("POST", f"/v1/sandboxes/{held}/pause")
    admin.ok("POST", f"/v1/sandboxes/{held}/resume")
    server.kill()
    server.start()
    # One that was made later has been idle for long when it ends.
    ended(admin.create(idle_timeout=1)["id"])
    told = admin.ok("GET", f"/v1/sandboxes/{held}")
    assert (told["state"], told["held_until"]) == ("running", until)
    admin.ok("POST", f"/v1/sandboxes/{held}/hold", json={"seconds": 0})
    ended(held)


def test_a_request_to_a_frozen_sandbox_is_answered_as_if_it_were_awake(admin: Api) -> None:
    site = serve(admin)
    deadline = time.monotonic() + 20
    with wire(site.edge) as line:
        for number in range(3):
            while not admin.ok("GET", f"/v1/sandboxes/{site.id}")["frozen"]:
                if time.monotonic() > deadline and not number:
                    admin.delete(site.id)
                    pytest.skip("this runsc burns no processor time when idle, so nothing is frozen")
            assert line.ask("GET", f"/{number}", site.host, site.key).json["target"] == f"/{number}"
    admin.delete(site.id)
