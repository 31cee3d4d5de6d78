"""What the edge process reads from sandboxes and servers: nothing that comes in can do more than be refused."""

from __future__ import annotations

import asyncio
import functools
import os
import socket
import ssl
import struct
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from corral.net import clienthello, dns
from corral.net.clienthello import Hello, NotTlsError
from corral.net.dns import Code, Ede, MalformedError
from corral.net.edge_link import Link
from corral.net.flow_log import BATCH, KEPT, FlowLog
from corral.net.occupant import Bucket
from corral.net.redact import LEAST, Patterns, Redactor, forms
from corral.net.tenant import Tenant
from corral.schema.egress import EgressPolicy

# DNS

labels = st.text("abcxyz019-_", min_size=1, max_size=62)
names = st.lists(labels, min_size=1, max_size=4).map(".".join)


def query(name: str, kind: int = 1, *, edns: bool = True) -> bytes:
    wire = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return (
        b"\x12\x34\1\0\0\1\0\0\0\0"
        + (b"\0\1" if edns else b"\0\0")
        + wire
        + b"\0"
        + struct.pack(">HH", kind, 1)
        + (b"\0\0\x29\x04\xd0\0\0\0\0\0\0" if edns else b"")
    )


@given(st.binary(max_size=600))
@example(b"")
@example(query("a.example")[:-20])
@example(b"\0\0\1\0\0\1\0\0\0\0\0\0\xc0\x0c\0\1\0\1")
def test_whatever_comes_as_a_query(data: bytes) -> None:
    try:
        parsed = dns.parse_query(data)
    except MalformedError:
        refusal = dns.refusal(data, Code.FORMERR)
        assert refusal is None or len(refusal) == dns.HEADER
    else:
        assert len(parsed.name) <= 253


@given(names, st.integers(0, 65535), st.booleans())
def test_queries_are_understood_and_answered(name: str, kind: int, edns: bool) -> None:
    parsed = dns.parse_query(query(name, kind, edns=edns))
    assert (parsed.name, parsed.type, parsed.edns) == (name, kind, edns)
    reply = dns.reply(parsed, addresses=("1.2.3.4", "5.6.7.8"), ttl=9, why=(Ede.BLOCKED, "no"), udp=False)
    assert reply[:2] == b"\x12\x34"
    answer = dns.parse_answer(reply, b"\x12\x34" + query(name, kind)[2:])
    assert (answer.addresses, answer.ttl, answer.code) == (("1.2.3.4", "5.6.7.8"), 9, 0)


def test_a_long_answer_is_cut_over_udp() -> None:
    parsed = dns.parse_query(query("a.example", edns=False))
    many = tuple(f"1.2.3.{n}" for n in range(100))
    assert dns.parse_answer(dns.reply(parsed, addresses=many, udp=True), query("a.example")).truncated
    assert len(dns.reply(parsed, addresses=many, udp=True)) <= 512
    assert not dns.parse_answer(dns.reply(parsed, addresses=many, udp=False), query("a.example")).truncated


@given(st.binary(max_size=600))
def test_whatever_comes_as_an_answer(data: bytes) -> None:
    asked = dns.question(0x1234, "a.example", 1)
    for reply in (data, asked[:2] + b"\x81\x80\0\1" + data[:6].ljust(6, b"\1") + asked[12:-11] + data[6:]):
        try:
            assert len(dns.parse_answer(reply, asked).addresses) <= dns.RECORDS
        except MalformedError:
            pass


def test_names_in_circles_end() -> None:
    asked = dns.question(1, "a.example", 1)
    head = asked[:2] + b"\x81\x80\0\1\0\1\0\0\0\0" + asked[12:-11]
    for owner in (bytes([0xC0, len(head)]), bytes([0xC0, len(head) + 2, 0xC0, len(head)])):
        with pytest.raises(MalformedError):
            dns.parse_answer(head + owner + b"\0\1\0\1\0\0\0\0\0\4\1\2\3\4", asked)
    # An alias of itself.
    loop = head + b"\xc0\x0c\0\5\0\1\0\0\0\1\0\2\xc0\x0c"
    assert dns.parse_answer(loop, asked).addresses == ()


@pytest.mark.parametrize(
    "name", ["evil.net..x.example.com", ".example.com", "a.example.com.", "", "a" * 64 + ".example.com", "a b.example", "A.example", "ä.example", "x." * 127]
)
def test_what_is_no_name_is_asked_nobody(name: str) -> None:
    assert not dns.is_name(name)
    with pytest.raises(MalformedError):
        dns.question(1, name, 1)


# TLS


@functools.cache
def hello(name: str | None) -> bytes:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.set_alpn_protocols(["h2", "http/1.1"])
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    connection = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        connection.do_handshake()
    return outgoing.read()


def test_a_hello_tells_its_name() -> None:
    data = hello("API.Example.com")
    assert clienthello.parse(data) == Hello("api.example.com", ("h2", "http/1.1"))
    assert clienthello.parse(data + b"more") == Hello("api.example.com", ("h2", "http/1.1"))
    assert clienthello.parse(hello(None)) == Hello(None, ("h2", "http/1.1"))
    for cut in range(len(data)):
        needed = clienthello.parse(data[:cut])
        assert isinstance(needed, int)
        assert cut < needed <= len(data)


@given(st.lists(st.integers(1, 200), max_size=40))
def test_a_hello_in_small_records(sizes: list[int]) -> None:
    message, out = hello("a.example")[5:], b""
    for size in [*sizes, len(message)]:
        piece, message = message[:size], message[size:]
        if piece:
            out += b"\x16\3\1" + len(piece).to_bytes(2) + piece
    parsed = clienthello.parse(out)
    assert isinstance(parsed, Hello)
    assert parsed.name == "a.example"


@given(st.binary(max_size=400), st.integers(0, 600), st.binary(max_size=4))
def test_whatever_comes_as_a_hello(data: bytes, at: int, change: bytes) -> None:
    good = hello("a.example")
    for attempt in (data, b"\x16\3\1" + data, good[:at] + change + good[at + len(change) :], b"\x16\3\1" + len(data).to_bytes(2) + data):
        try:
            found = clienthello.parse(attempt)
        except NotTlsError:
            continue
        if isinstance(found, int):
            assert len(attempt) < found <= clienthello.HELLO
        else:
            assert found.name is None or dns.is_name(found.name)


def test_a_name_that_ends_early_on_the_wire_is_none() -> None:
    data = hello("evil.net.x.example.com").replace(b"evil.net.x.", b"evil.net..x"[:11])
    with pytest.raises(NotTlsError):
        clienthello.parse(data)


# Secrets

values = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), min_size=4, max_size=12).filter(lambda value: len(value.strip().encode()) >= LEAST)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(values, min_size=1, max_size=3), st.data())
def test_no_value_gets_through_whatever_the_chunks(secrets: list[str], data: st.DataObject) -> None:
    patterns = Patterns(secrets)
    pieces = data.draw(st.lists(st.one_of(st.binary(max_size=6), st.sampled_from(sorted({form for secret in secrets for form in forms(secret)}))), max_size=8))
    whole = b"".join(pieces)
    redactor, out, at = Redactor(lambda: patterns), b"", 0
    while at < len(whole):
        size = data.draw(st.integers(1, 9))
        out += redactor.feed(whole[at : at + size])
        at += size
    out += redactor.end()
    assert len(out) == len(whole)
    for secret in secrets:
        if b"*" not in secret.encode():
            assert secret.encode() not in out
    assert all(kept in (original, ord("*")) for kept, original in zip(out, whole, strict=True))


def test_what_is_no_secret_stays() -> None:
    redactor = Redactor(lambda: Patterns(["hunter22"]))
    assert redactor.feed(b"hunter hunte hunter2 ") == b"hunter hunte hunter2 "
    assert redactor.feed(b"hun") == b""
    assert redactor.feed(b"dred") == b"hundred"
    assert redactor.end() == b""


@pytest.mark.parametrize("offset", [0, 1, 2])
def test_values_in_base64(offset: int) -> None:
    import base64

    secret = "sk-live-0123456789abcdef"
    coded = base64.b64encode(b"x" * offset + secret.encode() + b"tail")
    masked = Patterns([secret]).mask(coded)
    assert masked.count(b"*") >= len(secret) * 4 // 3 - 2
    assert secret not in str(base64.b64decode(masked.replace(b"*", b"A")))


def test_secrets_are_in_no_representation() -> None:
    tenant = Tenant("sb-a", "198.18.1.1", "sb1", 7, EgressPolicy(), {"T": "hunter22"})
    assert "hunter22" not in repr(tenant) + str(tenant) + repr(Redactor(lambda: Patterns(["hunter22"]))) + repr(Patterns(["hunter22"]))
    assert Tenant.of(tenant.message()) == tenant


# The socket to the server


async def test_messages_come_whole_and_in_order() -> None:
    one, other = socket.socketpair()
    got: list[tuple[dict[str, Any], int]] = []
    lost = asyncio.Event()
    all_here = asyncio.Event()

    def take(message: dict[str, Any], fds: list[int]) -> None:
        got.append((message, len(fds)))
        for fd in fds:
            os.close(fd)
        if message.get("last"):
            all_here.set()

    sender = Link(one, lambda _, __: None, lambda: None)
    Link(other, take, lost.set)
    for number in range(50):
        sender.send({"number": number, "text": "x" * (number * 2000)}, [0, 1] if number % 7 == 0 else [])
    sender.send({"last": True})
    await sender.drained()
    await all_here.wait()
    assert [message.get("number") for message, _ in got] == [*range(50), None]
    assert [count for _, count in got[:50]] == [2 if number % 7 == 0 else 0 for number in range(50)]
    sender.close()
    await lost.wait()
    with pytest.raises(ConnectionResetError):
        sender.send({})


async def test_flows_wait_for_a_server_and_are_bounded() -> None:
    sent: list[tuple[int, int]] = []
    there = False

    def send(batch: int, records: list[dict[str, Any]]) -> bool:
        if there:
            sent.append((batch, len(records)))
        return there

    log = FlowLog(send)
    for number in range(KEPT + 10):
        log.add(sandbox="sb-a", kind="tcp", verdict="allowed", port=number)
    assert log.lost == 10
    there = True
    log.resume()
    assert sum(count for _, count in sent) == KEPT
    log.seen(sent[-1][0] - 1)
    told = len(sent)
    log.resume()
    assert sum(count for _, count in sent[told:]) == BATCH, "only what was not seen is told again"


def test_buckets_refill() -> None:
    bucket = Bucket(2, 10)
    assert [bucket.take(5.0), bucket.take(5.0), bucket.take(5.0), bucket.take(5.25), bucket.take(5.25), bucket.take(5.25)] == [
        True,
        True,
        False,
        True,
        True,
        False,
    ]
