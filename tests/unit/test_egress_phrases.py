"""The reasons that docs/egress.md promises are those that are given."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Any

import h11
import pytest

from corral.net import head, policy
from corral.net.content import HttpRequest
from corral.net.policy import Action
from corral.net.ranges import Protocol
from corral.schema.egress import EgressPolicy

DOCUMENT = Path(__file__).parents[2] / "docs" / "egress.md"
HOLES = re.compile(r"\b(?:NAME|ADDRESS|METHOD|PATH|RULE)\b")
DENIED = {"to": ["evil.example.net"], "action": "deny"}


def promised() -> dict[str, re.Pattern[str]]:
    table = DOCUMENT.read_text().partition("### What a program is told")[2].partition("\n## ")[0]
    phrases = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    return {phrase: re.compile(r"\S+".join(map(re.escape, HOLES.split(phrase)))) for phrase in phrases}


def connection(rules: dict[str, Any], *, name: str | None = None, address: str = "203.0.113.1", port: int = 443) -> str | None:
    ruling = policy.compile(EgressPolicy.model_validate(rules)).connection(Protocol.TCP, port, int(ipaddress.IPv4Address(address)), name)
    assert ruling.action is Action.DENY
    return ruling.reason


def request(rules: dict[str, Any], *, name: str | None, method: str = "GET") -> str | None:
    asked = HttpRequest(method, "/path", name, int(ipaddress.IPv4Address("203.0.113.1")), 80)
    ruling = policy.compile(EgressPolicy.model_validate(rules)).request(asked)
    assert ruling.action is Action.DENY
    return ruling.reason


def checked(method: str = "GET", *, host: str = "api.example.com", sni: str | None = None) -> str | None:
    event = h11.Request(method=method, target="/", headers=[("Host", host)])
    scheme = "http" if sni is None else "https"
    with pytest.raises(head.RefusedError) as refused:
        head.check(event, head.facts(event, sni=sni, scheme=scheme, address=1, port=443), sni=sni, scheme=scheme)
    return refused.value.ruling.reason


def sent(secrets: dict[str, str], *, scheme: head.Scheme) -> str | None:
    rules = {"rules": [{"to": ["api.example.com"], "inject": {"Authorization": "Bearer {{TOKEN}}"}}]}
    event = h11.Request(method="GET", target="/", headers=[("Host", "api.example.com")])
    ruling = policy.compile(EgressPolicy.model_validate(rules)).request(HttpRequest("GET", "/", "api.example.com", 1, 443))
    with pytest.raises(head.RefusedError) as refused:
        head.onward(event, ruling, secrets=secrets, brokered=True, scheme=scheme)
    return refused.value.ruling.reason


def given() -> list[str | None]:
    public = {"default": "public", "rules": [DENIED]}
    named = policy.compile(EgressPolicy.model_validate({"rules": [{"to": ["*.example.com"]}]}))
    return [
        connection({"rules": [{"to": ["api.example.com"]}]}, name="evil.example.net"),
        request({"rules": [{"to": ["api.example.com"], "http": {"methods": ["GET"]}}]}, name="api.example.com", method="DELETE"),
        connection(public, name="evil.example.net"),
        connection({"default": "public"}, address="10.1.2.3"),
        named.reachable(int(ipaddress.IPv4Address("10.1.2.3"))),
        named.reachable(int(ipaddress.IPv4Address("127.0.0.1"))),
        request(public, name=None),
        checked(host="evil.example.net", sni="api.example.com"),
        connection(public, name="dns.google"),
        checked("TRACE"),
        sent({}, scheme="https"),
        sent({"TOKEN": "value"}, scheme="http"),
    ]


def test_every_reason_that_is_promised_is_given_and_every_one_that_is_given_is_promised() -> None:
    phrases, reasons = promised(), given()
    assert len(phrases) == len(reasons)
    for reason in reasons:
        assert reason is not None
        assert [phrase for phrase, pattern in phrases.items() if pattern.fullmatch(reason)], reason
    for phrase, pattern in phrases.items():
        assert any(pattern.fullmatch(reason or "") for reason in reasons), phrase
