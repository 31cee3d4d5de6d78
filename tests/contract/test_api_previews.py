"""Previews: what passes, who may see what, and what everybody else is told."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import parse_qs, urlsplit

import pytest

from harness import web
from harness.api import Api
from harness.previewed import PORT, Site, serve
from harness.server import Server
from harness.web import wire


@pytest.fixture(scope="module")
def other(admin: Api) -> Iterator[Site]:
    made = serve(admin)
    yield made
    admin.delete(made.id)


# What passes


def test_requests_pass_as_they_are_and_connections_are_kept(site: Site) -> None:
    with wire(site.edge) as line:
        first = line.ask("POST", "/a%20b?q=1&q=2", site.host, site.key, "X-Case: Yes", body=b"x" * 100_000).json
        second = line.ask("DELETE", "/", site.host, site.key).json
    assert (first["method"], first["target"], first["size"]) == ("POST", "/a%20b?q=1&q=2", 100_000)
    assert ["x-case", "Yes"] in first["headers"]
    assert ["host", site.host] in first["headers"]
    assert "ck_" not in json.dumps(first)
    assert second["method"] == "DELETE"
    assert first["peer"] == second["peer"], "the connection behind was not kept"


def test_pipelined_requests_are_answered_in_order(site: Site) -> None:
    with wire(site.edge) as line:
        line.say(b"".join(f"GET /{n} HTTP/1.1\r\nHost: {site.host}\r\n{site.key}\r\n\r\n".encode() for n in range(5)))
        assert [line.hear().json["target"] for _ in range(5)] == [f"/{n}" for n in range(5)]


def test_one_connection_never_carries_a_request_to_another_sandbox(site: Site, other: Site) -> None:
    with wire(site.edge) as line:
        for _ in range(3):
            for each in (site, other):
                assert line.ask("GET", "/", each.host, each.key).json["me"] == each.id
        line.ask("GET", "/", site.host, site.key)
        assert line.ask("GET", "/", other.host).code == "unauthenticated", "a credential counts for its request only"


def test_bodies_of_every_framing_pass(site: Site) -> None:
    with wire(site.edge) as line:
        answer = line.ask("GET", "/chunks", site.host, site.key, "TE: trailers")
        assert answer.body == b"hello worldx-sum: 11\r\n"
        head = f"POST / HTTP/1.1\r\nHost: {site.host}\r\n{site.key}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        line.say(head + b"4\r\nabcd\r\n")
        line.say(b"3;x=y\r\nefg\r\n0\r\nX-Sum: 7\r\n\r\n")
        told = line.hear().json
        assert (told["size"], told["trailers"]) == (7, ["X-Sum: 7"])
        assert line.ask("HEAD", "/", site.host, site.key).status == 200
        assert line.ask("GET", "/cookie", site.host, site.key).header("set-cookie") == "a=1"
        assert line.ask("GET", "/events", site.host, site.key).body == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"


def test_uploads_wait_for_leave_to_continue(site: Site) -> None:
    with wire(site.edge) as line:
        line.say(f"PUT / HTTP/1.1\r\nHost: {site.host}\r\n{site.key}\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n".encode())
        assert line.hear().status == 100
        line.say(b"12345")
        assert line.hear().json["size"] == 5
        line.say(f"PUT /refuse HTTP/1.1\r\nHost: {site.host}\r\n{site.key}\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n".encode())
        refused = line.hear()
        assert (refused.status, refused.header("connection")) == (413, "close")


def test_much_passes_both_ways(site: Site) -> None:
    size = 32 << 20
    with wire(site.edge) as line:
        assert len(line.ask("GET", f"/bulk?{size}", site.host, site.key).body) == size
        assert line.ask("POST", "/", site.host, site.key, body=bytes(size)).json["size"] == size


def test_an_upgraded_connection_is_bytes_and_each_half_ends_for_itself(site: Site) -> None:
    with wire(site.edge) as line:
        assert line.ask("GET", "/ws", site.host, site.key, "Connection: Upgrade", "Upgrade: websocket").status == 101
        line.say(b"ping")
        assert line.some(4) == b"ping"
        line.socket.shutdown(socket.SHUT_WR)
        assert line.rest() == b"bye"


def test_by_header_and_by_path(site: Site) -> None:
    assert site.get("/x", site.key, f"Corral-Sandbox: {site.id}", f"Corral-Port: {PORT}", host="10.1.2.3").json["target"] == "/x"
    by_path = site.get(f"/v1/sandboxes/{site.id}/ports/{PORT}/x?y", site.key, "Cookie: a=1", host="127.0.0.1")
    assert by_path.json["target"] == "/x?y"
    assert "cookie" not in dict(by_path.json["headers"])
    assert "sandbox" in (by_path.header("content-security-policy") or "")


def test_a_hundred_at_once_each_get_their_own(site: Site, other: Site) -> None:
    def ask(number: int) -> bool:
        each = site if number % 2 else other
        with wire(each.edge) as line:
            told = line.ask("GET", f"/{number}", each.host, each.key).json
        return (told["me"], told["target"]) == (each.id, f"/{number}")

    with ThreadPoolExecutor(100) as pool:
        assert all(pool.map(ask, range(200)))


# Who may see it


def cookie_of(link: str) -> str:
    """What a browser would keep of a link to the whole of a port."""
    given = parse_qs(urlsplit(link).query)
    return f"corral_preview={given['corral_expires'][0]}.Lw.{given['corral_signature'][0]}"


def test_who_may_see_a_port(site: Site, other: Site, admin: Api, server: Server) -> None:
    """Rows: what was given (in a header, a cookie, the query), and what that opens; for HTTP and websockets, while the port is private, public, and private again with another token."""
    admin.ok("POST", "/v1/projects", status=201, json={"name": "elsewhere"})
    keys = {name: admin.ok("POST", "/v1/keys", status=201, json={"name": name, **fields}) for name, fields in {
        "member": {}, "reader": {"role": "reader"}, "revoked": {}, "other project": {"project": "elsewhere"}, "in other project": {"project": "elsewhere"},
    }.items()}  # fmt: skip
    assert site.get("/", f"Corral-Key: {keys['revoked']['value']}").status == 200
    admin.ok("DELETE", f"/v1/keys/{keys['revoked']['id']}", status=204)
    token = admin.ok("GET", f"/v1/sandboxes/{site.id}/preview-token")["token"]
    link, narrow, short, foreign = site.link(), site.link(path="/docs"), site.link(expires=0.001), other.link()
    elsewhere = Api(server, key=keys["in other project"]["value"])
    theirs = elsewhere.create()["id"]
    path = f"/v1/sandboxes/{theirs}"
    parts = urlsplit(elsewhere.ok("POST", f"{path}/previews/{PORT}/links", status=201, json={})["url"])
    strange, strange_token = f"{parts.path}?{parts.query}", elsewhere.ok("GET", f"{path}/preview-token")["token"]
    elsewhere.delete(theirs)
    elsewhere.close()
    browser = ("Accept: text/html", "Sec-Fetch-Mode: navigate")
    cookies = {
        name: str(site.get(at, *browser).header("set-cookie")).partition(";")[0]
        for name, at in {"whole": link, "narrow": narrow.replace("/docs?", "/docs/x?")}.items()
    }
    assert cookies["whole"] == cookie_of(link)
    cookies |= {name: cookie_of(at) for name, at in {"short": short, "foreign": foreign, "strange": strange}.items()}
    time.sleep(2)  # a link's time is told in whole seconds: the short one has run out now
    ok, nothing, no, late = (200, None), (401, "unauthenticated"), (403, "forbidden"), (403, "link_expired")
    page = f"Origin: http://{site.host}"
    rows: list[tuple[str, str, tuple[str, ...], tuple[int, str | None]]] = [
        ("nothing", "/", (), nothing),
        ("an admin's key", "/", (site.key,), ok),
        ("a member's key", "/", (f"Corral-Key: {keys['member']['value']}",), ok),
        ("as Authorization", "/", (f"Authorization: Bearer {keys['member']['value']}",), ok),
        ("a reader's key", "/", (f"Corral-Key: {keys['reader']['value']}",), no),
        ("a revoked key", "/", (f"Corral-Key: {keys['revoked']['value']}",), no),
        ("another project's key", "/", (f"Corral-Key: {keys['other project']['value']}",), no),
        ("no key at all", "/", ("Corral-Key: x",), no),
        ("another's Authorization", "/", ("Authorization: Bearer guest",), nothing),
        ("the token", "/", (f"Corral-Token: {token}",), ok),
        ("a wrong token", "/", ("Corral-Token: pt_x",), no),
        ("a link", link, (), ok),
        ("a link elsewhere", "/else" + link[1:], (), ok),
        ("a narrow link", narrow, (), ok),
        ("below a narrow link", narrow.replace("/docs?", "/docs/a?"), (), ok),
        ("beside a narrow link", narrow.replace("/docs?", "/docsx?"), (), no),
        ("out of a narrow link", narrow.replace("/docs?", "/docs/../x?"), (), no),
        ("out of it, escaped", narrow.replace("/docs?", "/docs/%2E%2e/x?"), (), no),
        ("a widened link", narrow.replace("corral_path=/docs", "corral_path=/"), (), no),
        ("a lengthened link", link.replace("corral_expires=1", "corral_expires=2"), (), no),
        ("an expired link", short, (), late),
        ("another sandbox's link", foreign, (), no),
        ("another project's link", strange, (), no),
        ("another project's token", "/", (f"Corral-Token: {strange_token}",), no),
        ("an expired link and a good cookie", short, (f"Cookie: {cookies['whole']}", page), ok),
        ("an expired cookie", "/", (f"Cookie: {cookies['short']}", page), late),
        ("another sandbox's cookie", "/", (f"Cookie: {cookies['foreign']}", page), no),
        ("another project's cookie", "/", (f"Cookie: {cookies['strange']}", page), no),
        ("a cookie", "/", (f"Cookie: {cookies['whole']}", page), ok),
        ("a cookie beside others", "/", (f"Cookie: x=1; {cookies['whole']}; y=2", page), ok),
        ("a narrow cookie", "/docs/z", (f"Cookie: {cookies['narrow']}", page), ok),
        ("beside a narrow cookie", "/z", (f"Cookie: {cookies['narrow']}", page), no),
        ("a cookie, from another sandbox's page", "/", (f"Cookie: {cookies['whole']}", f"Origin: http://{other.host}", "Sec-Fetch-Site: same-site"), no),
        ("a wrong cookie and a key", "/", ("Cookie: corral_preview=1.x.y", site.key), ok),
    ]  # fmt: skip

    def check(when: str, expect: Callable[[str, tuple[int, str | None]], tuple[int, str | None]]) -> None:
        for name, target, fields, expected in rows:
            wanted = expect(name, expected)
            answer = site.get(target, *fields)
            assert (answer.status, answer.code) == wanted, f"{name}, {when}"
            if answer.status == 200:
                told = [answer.json["target"], [field for field in answer.json["headers"] if "host" not in field[0] and field[0] != "origin"]]
                assert "corral" not in json.dumps(told), f"{name}, {when}"
            with wire(site.edge) as line:
                answer = line.ask("GET", target, site.host, *fields, "Connection: Upgrade", "Upgrade: websocket")
            assert (answer.status, answer.code) == ((101, None) if wanted == ok else wanted), f"{name}, {when}, websocket"

    check("private", lambda _, expected: expected)
    site.public(True)
    check("public", lambda *_: ok)
    assert site.get("/", host=f"9-{site.id}.corral.localhost").status == 401, "another port stays private"
    site.public(False)
    admin.ok("POST", f"/v1/sandboxes/{site.id}/preview-token/rotate")
    by_key = {"an admin's key", "a member's key", "as Authorization", "a wrong cookie and a key"}
    # What the old token had signed is not even known to have expired.
    check("revoked", lambda name, expected: expected if name in by_key or expected == nothing else no)
    assert site.get(site.link()).status == 200


def test_a_browser_keeps_a_link_as_a_cookie_of_that_host_only(site: Site) -> None:
    kept = site.get(site.link(path="/docs").replace("/docs?", "/docs/a?b=1&"), "Accept: text/html")
    assert (kept.status, kept.header("location"), kept.header("referrer-policy")) == (302, "/docs/a?b=1", "no-referrer")
    words = str(kept.header("set-cookie"))
    assert "HttpOnly" in words
    assert "SameSite=Lax" in words
    assert "omain" not in words


def test_only_the_ports_that_a_sandbox_was_created_with_are_shown(admin: Api) -> None:
    site = serve(admin, ports=[PORT, 81])
    try:
        for port, code in ((PORT, None), (81, "port_closed"), (82, "forbidden")):
            answer = site.get("/", site.key, host=f"{port}-{site.id}.corral.localhost")
            assert (answer.code if answer.status >= 400 else None) == code, port
        assert site.get("/", host=f"82-{site.id}.corral.localhost").status == 401  # who may not see it is not told
        assert admin.ok("GET", f"/v1/sandboxes/{site.id}")["ports"] == [81, PORT]
        assert "81, 8000" in admin.refused("invalid_argument", "GET", f"/v1/sandboxes/{site.id}/previews/82")["hint"]
        admin.refused("invalid_argument", "PUT", f"/v1/sandboxes/{site.id}/previews/82", json={"public": True})
        tunnel = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: YWJjZGVmZ2hpamtsbW5vcA==\r\nSec-WebSocket-Protocol: corral-tcp"
        refused = site.get(f"/v1/sandboxes/{site.id}/tunnels/82", site.key, *tunnel.split("\r\n"), host="corral.localhost")
        assert (refused.status, refused.code) == (403, "forbidden")
    finally:
        admin.delete(site.id)
    admin.refused("invalid_argument", "POST", "/v1/sandboxes", json={"image": "tiny", "ports": [80], "public_ports": [81]})


# What everybody else is told


def test_clear_answers_for_programs_and_people(site: Site, admin: Api) -> None:
    closed = site.get("/", site.key, host=f"9-{site.id}.corral.localhost")
    assert (closed.status, closed.json["error"]["code"]) == (502, "port_closed")
    page = site.get("/", site.key, "Accept: text/html,*/*", host=f"9-{site.id}.corral.localhost")
    assert page.header("content-type") == "text/html; charset=utf-8"
    assert b"Nothing on port 9" in page.body
    assert site.get("/", host="8000-sb-aaaaaaaaaaaaaaaa.corral.localhost").status == 404
    assert site.get("/", host="example.com").status == 404
    gone = admin.create()["id"]
    admin.ok("POST", f"/v1/sandboxes/{gone}/stop")
    assert site.get("/", site.key, host=f"1-{gone}.corral.localhost").code == "stopped"
    admin.delete(gone)
    ended = site.get("/", site.key, host=f"1-{gone}.corral.localhost")
    assert (ended.status, ended.code) == (410, "sandbox_ended")
    assert "requested" in ended.json["error"]["message"]


@pytest.mark.parametrize(("target", "status"), [("/nothing", 502), ("/garbage", 502)])
def test_a_server_that_makes_no_sense_is_told_of(site: Site, target: str, status: int) -> None:
    with wire(site.edge) as line:
        answer = line.ask("GET", target, site.host, site.key)
        assert (answer.status, answer.code) == (status, "bad_gateway")
        assert line.ask("GET", "/", site.host, site.key).status == 200


def test_an_answer_that_breaks_off_is_not_taken_for_whole(site: Site) -> None:
    with wire(site.edge) as line:
        line.say(f"GET /short HTTP/1.1\r\nHost: {site.host}\r\n{site.key}\r\n\r\n".encode())
        with pytest.raises(ConnectionResetError):
            while line.some(1):
                pass
            raise ConnectionResetError if line.rest() == b"" else AssertionError


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GET / HTTP/1.1\nHost: a\n\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n 2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", 405),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * (1 << 20), 431),
    ],
)
def test_bad_heads_are_refused_and_nobody_else_notices(site: Site, raw: bytes, status: int) -> None:
    with wire(site.edge) as beside:
        beside.ask("GET", "/", site.host, site.key)
        with wire(site.edge) as line:
            try:
                line.say(raw)
            except OSError:
                pass  # it was refused before it was whole
            else:
                assert line.hear().status == status
        assert beside.ask("GET", "/", site.host, site.key).status == 200


def test_a_hold_keeps_a_sandbox_awake_and_is_told_of(admin: Api) -> None:
    sandbox = admin.create()["id"]
    assert admin.ok("POST", f"/v1/sandboxes/{sandbox}/hold", json={"seconds": 30, "reason": "a demo"})["until"]
    assert admin.ok("POST", f"/v1/sandboxes/{sandbox}/hold", json={"seconds": 0})["until"] is None
    kinds = admin.ok("GET", "/v1/events", params={"sandbox": sandbox, "kind": "sandbox.held"})["events"]
    assert [event["data"] for event in kinds] == [{"seconds": 30.0, "reason": "a demo"}, {"seconds": 0.0, "reason": ""}]
    admin.delete(sandbox)


# What goes on


def test_a_paused_sandbox_is_woken_by_those_who_may_see_it(admin: Api) -> None:
    site = serve(admin)
    admin.ok("POST", f"/v1/sandboxes/{site.id}/pause")
    assert site.get().status == 401
    assert admin.ok("GET", f"/v1/sandboxes/{site.id}")["state"] == "paused"
    assert site.get("/", site.key).json["me"] == site.id
    assert admin.ok("GET", f"/v1/sandboxes/{site.id}")["state"] == "running"
    admin.delete(site.id)


def test_a_stopped_sandbox_is_started_by_those_who_may_see_it_when_it_says_so(admin: Api) -> None:
    sandbox = admin.create(image="base", on_request="start")["id"]
    service = {"argv": ["python3", "-c", web.SERVER, sandbox, str(PORT)], "http_port": PORT}
    assert admin.ok("PUT", f"/v1/sandboxes/{sandbox}/services/web", json=service)["state"] == "idle"
    admin.ok("POST", f"/v1/sandboxes/{sandbox}/stop")
    edge = urlsplit(admin.ok("GET", f"/v1/sandboxes/{sandbox}/previews/{PORT}")["url"]).port
    assert edge is not None
    site = Site(admin, sandbox, edge)
    assert site.get().status == 401
    assert admin.ok("GET", f"/v1/sandboxes/{sandbox}")["state"] == "stopped"
    assert site.get("/", site.key).json["me"] == sandbox
    assert admin.ok("GET", f"/v1/sandboxes/{sandbox}")["state"] == "running"
    assert admin.ok("PATCH", f"/v1/sandboxes/{sandbox}", json={"on_request": "resume"})["on_request"] == "resume"
    admin.ok("POST", f"/v1/sandboxes/{sandbox}/stop")
    assert site.get("/", site.key).code == "stopped"
    admin.delete(sandbox)
