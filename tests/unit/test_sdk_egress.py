"""Policies as Python says them."""

from __future__ import annotations

from typing import Any

import pytest

from corral import Egress
from corral.errors import InvalidArgument
from corral.schema.egress import EgressPolicy
from corral.sdk import faults
from corral.sdk.egress import policy


def said(egress: Egress) -> dict[str, Any]:
    return egress.policy.model_dump(mode="json", exclude_defaults=True)


def test_constructors_and_chains_say_the_same() -> None:
    assert said(Egress.none()) == {}
    assert said(Egress.public()) == {"default": "public"}
    assert said(Egress.all()) == {"default": "all"}
    assert said(Egress.allow("api.example.com", "*.example.org")) == {"rules": [{"to": ["api.example.com", "*.example.org"]}]}
    assert Egress.allow("a.test") == Egress.none().allow("a.test") == Egress().allow("a.test")
    assert said(Egress.deny("a.test")) == {"rules": [{"to": ["a.test"], "action": "deny"}]}
    assert said(Egress.learn()) == {"default": "public", "learn": True}
    assert said(Egress.all().learn()) == {"default": "all", "learn": True}


def test_a_chain_leaves_what_it_began_with() -> None:
    first = Egress.public()
    second = first.deny("ads.test").allow("10.1.2.3", ports=5432, protocol="tcp", name="db").quic().budget(upload=10, connections=8)
    assert said(first) == {"default": "public"}
    assert said(second) == {
        "default": "public",
        "rules": [{"to": ["ads.test"], "action": "deny"}, {"to": ["10.1.2.3/32"], "ports": ["5432"], "protocol": "tcp", "name": "db"}],
        "quic": True,
        "budget": {"upload": 10.0, "connections": 8},
    }


def test_rules_on_requests() -> None:
    egress = (
        Egress.rule("api.github.com", methods=["GET"], path="/repos/*", inject={"Authorization": "Bearer {{GITHUB}}"})
        .rule("pkgs.example.com", proxy="http://proxy.test:8080")
        .rule("*", respond={"status": 404, "body": "no"}, ports=[80, "8000-8999"])
        .ask("*.example.com", timeout=5, default="allow")
    )
    github, pypi, every, asking = egress.policy.rules
    assert github.http is not None
    assert (github.http.methods, github.http.path, github.inject) == (["GET"], "/repos/*", {"Authorization": "Bearer {{GITHUB}}"})
    assert egress.policy.secrets == {"GITHUB"}
    assert pypi.proxy == "http://proxy.test:8080"
    assert every.respond is not None
    assert (every.respond.status, every.ports) == (404, ["80", "8000-8999"])
    assert (asking.action, egress.policy.ask_timeout, egress.policy.ask_default) == ("ask", 5, "allow")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Egress.allow("not a name"), "domain"),
        (lambda: Egress.allow("::1"), "IPv6"),
        (lambda: Egress.allow("a.test", ports="x"), "port"),
        (Egress.allow, "at least 1"),
        (lambda: Egress.rule("*", inject={"A": "{{B}}"}), "named domains"),
        (lambda: Egress.rule("a.test", inject={"A": "b"}, proxy="http://p.test"), "one thing"),
        (lambda: Egress.budget(upload=-1), "upload"),
        (lambda: policy("nonesuch"), "default"),
        (lambda: policy({"nonesuch": 1}), "nonesuch"),
    ],
)
def test_what_can_not_be_is_said_at_once(make: Any, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        make()


def test_the_server_reads_what_is_sent() -> None:
    egress = Egress.public().rule("a.test", methods=["POST"], inspect=True).ask("*", timeout=3).budget(bytes=0)
    assert EgressPolicy.model_validate_json(faults.encode(egress.policy)) == egress.policy
    assert policy(egress) is egress.policy
    assert policy("all").default == "all"
