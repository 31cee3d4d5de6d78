"""Heads of requests: what is refused whatever the rules say, and what is sent on."""

from __future__ import annotations

from typing import Any

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.net import head
from corral.net.head import RefusedError
from corral.net.policy import Action, Ruling
from corral.schema.egress import Rule


def event(*headers: tuple[str, str], method: str = "GET", target: str = "/", host: str | None = "api.example.com") -> h11.Request:
    given_headers = [*headers, *([("Host", host)] if host else [])]
    return h11.Request(method=method, target=target, headers=given_headers)


def checked(request: h11.Request, sni: str | None = None) -> str | None:
    """The name that rules are asked about."""
    scheme: head.Scheme = "https" if sni else "http"
    facts = head.facts(request, sni=sni, scheme=scheme, address=1, port=443)
    head.check(request, facts, sni=sni, scheme=scheme)
    return facts.name


def sent(
    request: h11.Request, *, secrets: dict[str, str] | None = None, brokered: bool = False, scheme: head.Scheme = "https", **rule: Any
) -> dict[str, list[str]]:
    ruling = Ruling(Action.ALLOW, Rule.model_validate({"to": ["api.example.com"], **rule}))
    result: dict[str, list[str]] = {}
    for name, value in head.onward(request, ruling, secrets=secrets or {}, brokered=brokered, scheme=scheme).headers:
        result.setdefault(name.decode().lower(), []).append(value.decode())
    return result


def test_the_name_is_the_host_or_what_tls_was_begun_with() -> None:
    assert checked(event(host="API.example.com:8080")) == "api.example.com"
    assert checked(event(host="api.example.com.")) == "api.example.com"
    assert checked(event(host="10.0.0.1")) is None
    assert checked(event(target="http://api.example.com/x")) == "api.example.com"
    assert checked(event(), "api.example.com") == "api.example.com"
    with pytest.raises(RefusedError, match="TLS connection names"):
        checked(event(), "other.example.com")
    with pytest.raises(RefusedError, match="TLS connection names"):
        checked(event(host="10.0.0.1"), "other.example.com")


@pytest.mark.parametrize("host", ["a..b.example.com", "a_b@example.com", "a b", "-", "x" * 300, "[::1]", "a.example.com:x", "ä.example"])
def test_strange_hosts(host: str) -> None:
    try:
        request = event(host=host)
    except (h11.LocalProtocolError, UnicodeEncodeError):
        return
    if host == "-":
        assert checked(request) == "-", "a label like any other"
        return
    with pytest.raises(RefusedError):
        checked(request)


def test_hop_by_hop_headers_stay_here() -> None:
    headers = sent(
        event(
            ("Connection", "close, X-Mine"),
            ("X-Mine", "1"),
            ("Keep-Alive", "5"),
            ("TE", "trailers"),
            ("Upgrade", "h2c"),
            ("HTTP2-Settings", "x"),
            ("X-Other", "2"),
        )
    )
    assert headers == {"host": ["api.example.com"], "x-other": ["2"]}
    upgraded = sent(event(("Connection", "keep-alive, Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Extensions", "permessage-deflate")))
    assert upgraded["connection"] == ["Upgrade"]
    assert upgraded["upgrade"] == ["websocket"]
    assert "sec-websocket-extensions" in upgraded
    # A client can't have the framing or the name dropped.
    assert sent(event(("Connection", "host, content-length"), ("Content-Length", "3")))["content-length"] == ["3"]


def test_injected_headers_replace_the_clients() -> None:
    headers = sent(
        event(("authorization", "mine"), ("AUTHORIZATION", "mine too"), ("Accept-Encoding", "br"), ("Range", "bytes=0-1")),
        secrets={"A": "s3cret"},
        brokered=True,
        inject={"Authorization": "Bearer {{A}}"},
    )
    assert headers["authorization"] == ["Bearer s3cret"]
    assert headers["accept-encoding"] == ["identity"]
    assert "range" not in headers


def test_headers_that_servers_take_for_an_injected_one_are_replaced_too() -> None:
    headers = sent(event(("X_Api_Key", "mine"), ("x-api_key", "mine")), secrets={"A": "s3cret"}, inject={"X-Api-Key": "{{A}}"})
    assert "mine" not in str(headers)
    assert headers["x-api-key"] == ["s3cret"]


def test_what_names_a_host_but_no_server_in_tls_is_refused() -> None:
    asked = event(host="evil.example.net")
    facts = head.facts(asked, sni=None, scheme="https", address=1, port=443)
    with pytest.raises(RefusedError, match=r"TLS connection names \(none\)"):
        head.check(asked, facts, sni=None, scheme="https")
    by_address = event(host="203.0.113.1")
    head.check(by_address, head.facts(by_address, sni=None, scheme="https", address=1, port=443), sni=None, scheme="https")


def test_secrets_that_can_not_be_used() -> None:
    with pytest.raises(RefusedError, match="does not exist"):
        sent(event(), inject={"Authorization": "{{A}}"})
    with pytest.raises(RefusedError, match="TLS only"):
        sent(event(), secrets={"A": "x"}, scheme="http", inject={"Authorization": "{{A}}"})
    with pytest.raises(RefusedError, match="more than one line") as refused:
        sent(event(), secrets={"A": "top\r\nEvil: 1"}, inject={"Authorization": "{{A}}"})
    assert "top" not in str(refused.value)


@given(
    st.lists(st.tuples(st.sampled_from(["Connection", "X", "Cookie", "authorization", "Upgrade"]), st.text("abc,- ", max_size=20).map(str.strip)), max_size=6)
)
def test_a_client_can_not_touch_what_is_injected(headers: list[tuple[str, str]]) -> None:
    result = sent(event(*headers, ("Connection", "authorization")), secrets={"A": "s3cret"}, brokered=True, inject={"Authorization": "{{A}}"})
    assert result["authorization"] == ["s3cret"]
    assert result["accept-encoding"] == ["identity"]
