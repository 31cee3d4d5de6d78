"""Heads and bodies of HTTP: what two servers may read differently is refused, what is well-formed passes as it is."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.preview import framing, head, onward
from corral.preview.doors import By, Door, Table, Target
from corral.preview.head import BadHead

TABLE = Table(
    ("corral.localhost",),
    (Door("api", hosts=frozenset({"", "api"})), Door("e2b", ports=frozenset({49983}), sandbox_header="e2b-sandbox-id", port_header="e2b-sandbox-port")),
)


def asked(text: str) -> head.Request:
    return head.request(text.replace("\n", "\r\n").encode("latin-1"))


def get(*fields: str, target: str = "/", host: str = "8000-sb-a.corral.localhost") -> head.Request:
    return asked("\n".join([f"GET {target} HTTP/1.1", f"Host: {host}", *fields, "", ""]))


BAD = {
    "no host": (400, b"GET / HTTP/1.1\r\n\r\n"),
    "two hosts": (400, b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"),
    "folded": (400, b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n 2\r\n\r\n"),
    "bare LF": (400, b"GET / HTTP/1.1\nHost: a\r\n\r\n"),
    "bare CR": (400, b"GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n"),
    "NUL": (400, b"GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n"),
    "space before colon": (400, b"GET / HTTP/1.1\r\nHost : a\r\n\r\n"),
    "no name": (400, b"GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n"),
    "two spaces": (400, b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "tab": (400, b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    "HTTP/0.9": (400, b"GET /\r\n\r\n"),
    "HTTP/2": (400, b"PRI * HTTP/2.0\r\n\r\n"),
    "two lengths": (400, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n"),
    "list of lengths": (400, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\n"),
    "signed length": (400, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n"),
    "hex length": (400, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x1\r\n\r\n"),
    "huge length": (400, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9999999999999999999\r\n\r\n"),
    "length and chunked": (400, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "chunked twice": (400, b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "gzip, chunked": (501, b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"),
    "xchunked": (501, b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n"),
    "chunked in 1.0": (501, b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "CONNECT": (405, b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n"),
    "TRACE": (405, b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "authority form": (400, b"GET a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n"),
    "absolute form of another": (400, b"GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    "user in it": (400, b"GET http://x@a/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    "asterisk": (400, b"GET * HTTP/1.1\r\nHost: a\r\n\r\n"),
    "fragment": (400, b"GET /#a HTTP/1.1\r\nHost: a\r\n\r\n"),
    "long target": (414, b"GET /" + b"a" * head.TARGET + b" HTTP/1.1\r\nHost: a\r\n\r\n"),
    "many fields": (431, b"GET / HTTP/1.1\r\nHost: a\r\n" + b"A: b\r\n" * head.FIELDS + b"\r\n"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_ambiguous_is_refused(name: str) -> None:
    status, raw = BAD[name]
    with pytest.raises(BadHead) as error:
        head.request(raw)
    assert error.value.status == status


@given(st.binary(max_size=300).map(lambda tail: b"GET / HTTP/1.1\r\nHost: a\r\n" + tail + b"\r\n\r\n"))
def test_what_is_taken_is_read_alike_by_another_parser(raw: bytes) -> None:
    try:
        mine = head.request(raw)
    except BadHead:
        return
    sent = onward.request(mine, Target("sb-a", 80, By.HOST), onward.Origin("127.0.0.1", secure=False), own=TABLE.own_headers(), host=None)
    theirs = h11.Connection(h11.SERVER)
    theirs.receive_data(sent)
    event = theirs.next_event()
    assert isinstance(event, h11.Request)
    assert (event.method, event.target) == (mine.method, mine.target)
    if mine.chunked or mine.length:
        assert theirs.next_event() is h11.NEED_DATA
    else:
        assert isinstance(theirs.next_event(), h11.EndOfMessage)
        assert theirs.trailing_data == (b"", False)


FIELDS = st.lists(
    st.sampled_from(
        [b"Content-Length: 5", b"Content-Length: 0", b"Content-Length:5 ", b"Transfer-Encoding: chunked", b"Connection: close", b"Connection: X, keep-alive", b"X: 1", b" folded", b"Set-Cookie: a=1; Domain=b"]
    )
    | st.binary(max_size=20),
    max_size=5,
)  # fmt: skip


@given(
    st.sampled_from([b"200 OK", b"204 No", b"304 Not", b"200", b"200 ", b"99 X", b"700 X"]),
    st.sampled_from([b"\r\n", b"\n"]),
    FIELDS,
    st.sampled_from(["GET", "HEAD"]),
)
def test_what_is_taken_of_an_answer_is_read_alike_by_another_parser(status: bytes, end: bytes, fields: list[bytes], method: str) -> None:
    try:
        mine = head.response(b"HTTP/1.1 " + end.join([status, *fields]) + b"\r\n\r\n")
    except BadHead as error:
        assert (error.status, error.code) == (502, "bad_gateway")
        return
    request = asked(f"{method} / HTTP/1.1\nHost: a\n\n")
    theirs = h11.Connection(h11.CLIENT)
    theirs.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
    theirs.send(h11.EndOfMessage())
    theirs.receive_data(onward.response(mine, Target("sb-a", 80, By.HOST), request, host=None, secure=False, persists=True))
    event = theirs.next_event()
    assert isinstance(event, h11.Response)
    assert event.status_code == mine.status
    # Whether a body follows, and how long it is.
    body = framing.of_response(mine, request.method)
    ended = isinstance(theirs.next_event(), h11.EndOfMessage)
    assert ended == body.done
    if isinstance(body, framing.Sized) and not ended:
        theirs.receive_data(b"12345")
        came = theirs.next_event()
        assert isinstance(came, h11.Data)
        assert bytes(came.data) == b"12345"
        assert isinstance(theirs.next_event(), h11.EndOfMessage)


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=6), st.integers(1, 7), st.binary(max_size=5))
def test_the_end_of_chunks_is_found_however_they_are_cut(chunks: list[bytes], step: int, rest: bytes) -> None:
    body = b"".join(b"%x;ext=1\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\nTrailer: yes\r\n\r\n"
    data, found, taken = body + rest, framing.Chunked(), 0
    while not found.done and taken < len(data):
        taken += found.take(data[taken : taken + step])
    assert found.done
    assert taken == len(body)


@pytest.mark.parametrize(
    "body",
    [
        b"1\nx\r\n",
        b"1\r\nxy",
        b"g\r\n",
        b"-1\r\n",
        b"0x1\r\n",
        b" 1\r\n",
        b"1 \nx",
        b"\r\n",
        b"1" * 20 + b"\r\n",
        b"0\r\nbad\r\n\r\n",
        b"0\r\n a: b\r\n",
        b"1;" + b"x" * 2000,
    ],
)
def test_malformed_chunks_are_refused(body: bytes) -> None:
    with pytest.raises(BadHead):
        framing.Chunked().take(body + b"\r\n\r\n\r\n")


@pytest.mark.parametrize(
    ("request_", "target"),
    [
        (get(), Target("sb-a", 8000, By.HOST)),
        (get(host="8000-SB-A.Corral.Localhost.:7080"), Target("sb-a", 8000, By.HOST)),
        (get(host="49983-sb-a.corral.localhost"), Target("sb-a", 49983, By.HOST, door="e2b")),
        (get(host="corral.localhost:7080"), Target(None, 0, By.HOST, door="api")),
        (get(host="api.corral.localhost"), Target(None, 0, By.HOST, door="api")),
        (get("Corral-Sandbox: sb-b", "Corral-Port: 1", host="10.0.0.1"), Target("sb-b", 1, By.HEADER)),
        (get("E2b-Sandbox-Id: sb-b", "E2b-Sandbox-Port: 3000", host="x.e2b.app"), Target("sb-b", 3000, By.HEADER)),
        (get(target="/v1/sandboxes/sb-b/ports/80/x?y", host="10.0.0.1"), Target("sb-b", 80, By.PATH, base=b"/v1/sandboxes/sb-b/ports/80")),
        (get(target="/v1/sandboxes/sb-b/tunnels/80", host="10.0.0.1"), Target("sb-b", 80, By.PATH, base=b"/v1/sandboxes/sb-b/tunnels/80", tunnel=True)),
        (
            get(target="/v1/sandboxes/sb-b/exposed/80/db.x", host="10.0.0.1"),
            Target("sb-b", 80, By.PATH, base=b"/v1/sandboxes/sb-b/exposed/80/db.x", tunnel=True, name="db.x"),
        ),
        (
            get(target="/v1/sandboxes/sb-b/exposed/80/db/7", host="10.0.0.1"),
            Target("sb-b", 80, By.PATH, base=b"/v1/sandboxes/sb-b/exposed/80/db/7", tunnel=True, name="db", connection=7),
        ),
        (get(target="/v1/sandboxes/sb-b/exposed/80/db/7/x", host="corral.localhost"), Target(None, 0, By.HOST, door="api")),
        (get(target="/v1/sandboxes/sb-b/ports", host="corral.localhost"), Target(None, 0, By.HOST, door="api")),
    ],
)
def test_a_request_finds_its_port(request_: head.Request, target: Target) -> None:
    assert TABLE.find(request_) == target


@pytest.mark.parametrize(
    "request_",
    [
        get(host="example.com"),
        get(host="0-sb-a.corral.localhost"),
        get(host="65536-sb-a.corral.localhost"),
        get(host="8000-.corral.localhost"),
        get(host="x.8000-sb-a.corral.localhost"),
        get(host="8000-sb-aXcorral.localhost"),
        get(host="8000-sb-a.corral.localhost.evil"),
        get(host="8000-sb-a/corral.localhost"),
        get("Corral-Sandbox: sb-b", host="a"),
        get("Corral-Sandbox: sb-b", "Corral-Sandbox: sb-c", "Corral-Port: 1", host="a"),
        get("Corral-Sandbox: sb-b", "Corral-Port: 1", "Corral-Port: 2", host="a"),
        get("Corral-Sandbox: ../x", "Corral-Port: 1", host="a"),
    ],
)
def test_what_names_no_port_is_refused(request_: head.Request) -> None:
    with pytest.raises(BadHead):
        TABLE.find(request_)


KEY = "ck_" + "0" * 40


def test_the_guest_sees_nothing_that_was_said_to_corral() -> None:
    request = get(
        f"Authorization: Bearer {KEY}",
        f"Corral-Key: {KEY}",
        "Corral-Token: pt_1",
        "Corral-Door: x",
        "Cookie: a=1; corral_preview=1.x.y; b=2",
        "Connection: X-Hop, keep-alive",
        "X-Hop: 1",
        "X-Forwarded-For: 6.6.6.6",
        "Referer: https://8000-sb-a.corral.localhost/q?corral_expires=2&z=1&corral_signature=s",
        target="/p?corral_signature=s&q=1&corral_expires=2&corral_path=/",
    )
    sent = onward.request(request, Target("sb-a", 80, By.HOST), onward.Origin("127.0.0.9", secure=True), own=TABLE.own_headers(), host="localhost:80")
    assert sent.decode().split("\r\n") == [
        "GET /p?q=1 HTTP/1.1",
        "Host: localhost:80",
        "Cookie: a=1; b=2",
        "Referer: https://8000-sb-a.corral.localhost/q?z=1",
        "X-Forwarded-For: 127.0.0.9",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Host: 8000-sb-a.corral.localhost",
        "",
        "",
    ]


def test_a_credential_of_the_guest_reaches_it() -> None:
    sent = onward.request(
        get("Authorization: Bearer theirs"), Target("sb-a", 80, By.HOST), onward.Origin("::1", secure=False), own=TABLE.own_headers(), host=None
    )
    assert b"Authorization: Bearer theirs\r\n" in sent


def test_cookies_of_a_guest_stay_on_its_host() -> None:
    answer = head.response(b"HTTP/1.1 200 OK\r\nSet-Cookie: a=1; Domain=corral.localhost; Path=/\r\nAlt-Svc: h3\r\nConnection: x\r\nX: 1\r\n\r\n")
    told = onward.response(answer, Target("sb-a", 80, By.HOST), get(), host=None, secure=False, persists=True)
    assert told == b"HTTP/1.1 200 OK\r\nSet-Cookie: a=1; Path=/\r\n\r\n"
    by_path = onward.response(answer, Target("sb-a", 80, By.PATH, base=b"/v1/sandboxes/sb-a/ports/80"), get(), host=None, secure=False, persists=True)
    assert b"Set-Cookie" not in by_path
    assert b"Content-Security-Policy: sandbox" in by_path


@pytest.mark.parametrize(
    ("value", "base", "secure", "host", "seen"),
    [
        (b"/x", b"", False, None, b"/x"),
        (b"/x", b"/b", False, None, b"/b/x"),
        (b"/b/x", b"/b", False, None, b"/b/x"),
        (b"//c.example/x", b"/b", False, None, b"//c.example/x"),
        (b"x?y", b"/b", False, None, b"x?y"),
        (b"http://a:7443/x?y", b"", True, None, b"https://a:7443/x?y"),
        (b"http://A:7443", b"/b", False, None, b"http://a:7443/b"),
        (b"https://a:7443/x", b"", False, None, b"https://a:7443/x"),
        (b"http://localhost/x", b"", True, "localhost:80", b"https://a:7443/x"),
        (b"https://localhost:80/x", b"", True, "localhost:80", b"https://a:7443/x"),
        (b"http://localhost:81/x", b"", True, "localhost:80", b"http://localhost:81/x"),
        (b"http://a:7443@c.example/", b"/b", True, None, b"http://a:7443@c.example/"),
    ],
)
def test_a_guest_sends_clients_to_where_they_find_it(value: bytes, base: bytes, *, secure: bool, host: str | None, seen: bytes) -> None:
    answer = head.response(b"HTTP/1.1 302 Found\r\nLocation: " + value + b"\r\n\r\n")
    target = Target("sb-a", 80, By.PATH if base else By.HOST, base=base)
    told = onward.response(answer, target, get(host="a:7443"), host=host, secure=secure, persists=True)
    assert b"\r\nLocation: " + seen + b"\r\n" in told


@pytest.mark.parametrize(
    ("peer", "front", "fields", "origin"),
    [
        ("127.0.0.1", True, ["X-Forwarded-For: 6.6.6.6, 192.0.2.1", "X-Forwarded-Proto: https"], onward.Origin("192.0.2.1", secure=True)),
        ("::1", True, ["X-Forwarded-For: 6.6.6.6", "X-Forwarded-For: 2001:db8::1", "X-Forwarded-Proto: http"], onward.Origin("2001:db8::1", secure=False)),
        ("127.0.0.1", True, ["X-Forwarded-For: whoever", "X-Forwarded-Proto: gopher"], onward.Origin("127.0.0.1", secure=False)),
        ("127.0.0.1", True, [], onward.Origin("127.0.0.1", secure=False)),
        ("127.0.0.1", False, ["X-Forwarded-For: 6.6.6.6", "X-Forwarded-Proto: https"], onward.Origin("127.0.0.1", secure=False)),
        ("192.0.2.7", True, ["X-Forwarded-For: 6.6.6.6", "X-Forwarded-Proto: https"], onward.Origin("192.0.2.7", secure=False)),
    ],
)
def test_only_a_proxy_of_this_machine_is_believed_where_a_request_comes_from(peer: str, *, front: bool, fields: list[str], origin: onward.Origin) -> None:
    assert onward.origin(get(*fields), peer, secure=False, front=front) == origin
