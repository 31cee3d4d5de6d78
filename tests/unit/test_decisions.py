"""What a decision about one connection becomes: never more than was asked."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.control.decisions import answer, settled
from corral.control.denials import EVERY, MOST, Denials
from corral.errors import Conflict
from corral.schema.egress import Approval, EgressPolicy, Rule

NOW = datetime.now(UTC)


def policy(*rules: dict[str, Any], **fields: Any) -> EgressPolicy:
    return EgressPolicy.model_validate({"rules": rules, **fields})


def asked(name: str | None = "api.example.com", *, address: str | None = "192.0.2.7", port: int | None = 443, rule: str | None = None) -> Approval:
    return Approval(id="ap", sandbox="sb", name=name, address=address, port=port, rule=rule, asked_at=NOW, deadline=NOW)


@pytest.mark.parametrize(
    ("rule", "question", "to", "ports"),
    [
        ({"to": ["*"]}, asked(), "api.example.com", ["443"]),
        ({"to": ["*.example.com"]}, asked(), "api.example.com", ["443"]),
        ({"to": ["api.example.com"], "ports": ["400-500"]}, asked(), "api.example.com", ["443"]),
        ({"to": ["192.0.2.0/24"]}, asked(), "192.0.2.7/32", ["443"]),
        ({"to": ["0.0.0.0/0"]}, asked(None, port=22), "192.0.2.7/32", ["22"]),
        ({"to": ["*"], "http": {"path": "/v1/*"}}, asked(), "api.example.com", ["443"]),
        ({"to": ["nothing.test", "*"], "name": "titled"}, asked(rule="titled"), "api.example.com", ["443"]),
    ],
    ids=str,
)
def test_an_answer_is_as_wide_as_the_question(rule: dict[str, Any], question: Approval, to: str, ports: list[str] | None) -> None:
    asking = policy({"to": ["other.test"], "action": "ask"}, {**rule, "action": "ask"})
    for word in ("allow", "deny"):
        given = answer(asking, question, word)
        assert (given.to, given.ports, given.action, given.http) == ([to], ports, word, asking.rules[1].http)
        after = settled(asking, [given])
        assert after.rules == [asking.rules[0], given, asking.rules[1]]
        assert settled(after, [given]) == after


@pytest.mark.parametrize(
    ("rules", "question"),
    [
        ([], asked()),
        ([{"to": ["*"]}], asked()),
        ([{"to": ["example.com"], "action": "ask"}], asked()),
        ([{"to": ["*.api.example.com"], "action": "ask"}], asked()),
        ([{"to": ["le.com"], "action": "ask"}], asked("example.com")),
        ([{"to": ["*.example.com"], "action": "ask"}], asked("notexample.com")),
        ([{"to": ["*"], "ports": [80], "action": "ask"}], asked()),
        ([{"to": ["198.51.100.0/24"], "action": "ask"}], asked()),
        ([{"to": ["*"], "name": "new", "action": "ask"}], asked(rule="old")),
    ],
    ids=str,
)
def test_what_is_not_asked_any_more_is_not_answered(rules: list[dict[str, Any]], question: Approval) -> None:
    with pytest.raises(Conflict, match="changed"):
        answer(policy(*rules), question, "allow")


def test_a_kept_answer_opens_nothing_that_did_not_ask() -> None:
    given = Rule(to=["api.example.com"], ports=["443"])
    for untouched in (policy(), policy(default="public"), policy({"to": ["*"], "action": "deny"}), policy({"to": ["b.test"], "action": "ask"})):
        assert settled(untouched, [given]) is untouched
    inspected = policy({"to": ["*"], "action": "ask", "inspect": True})
    assert settled(inspected, [given]) is inspected


NAMES = st.lists(st.sampled_from(["a", "b", "example", "com", "test"]), min_size=1, max_size=4).map(".".join)
TO = st.one_of(NAMES, NAMES.map(lambda name: f"*.{name}"), st.just("*"), st.sampled_from(["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3"]))
RULES = st.builds(
    lambda to, ports, action: {"to": to, "ports": ports, "action": action},
    st.lists(TO, min_size=1, max_size=3),
    st.one_of(st.none(), st.lists(st.sampled_from(["1-500", "443", "80"]), min_size=1, max_size=2)),
    st.sampled_from(["allow", "deny", "ask"]),
)


@given(st.lists(RULES, max_size=5), st.lists(RULES, max_size=3), st.sampled_from(["443", "80", "9"]))
def test_rules_are_only_put_before_those_that_ask(rules: list[dict[str, Any]], answers: list[dict[str, Any]], port: str) -> None:
    before = policy(*rules)
    kept = [Rule.model_validate({**one, "to": one["to"][:1], "ports": [port], "action": "allow"}) for one in answers]
    after = settled(before, kept).rules
    added = [rule for rule in after if not any(rule is one for one in before.rules)]
    assert [rule for rule in after if any(rule is one for one in before.rules)] == before.rules
    assert all(rule in kept for rule in added)
    asking = [index for index, rule in enumerate(after) if rule.action == "ask"]
    assert not added or all(any(after.index(rule) < index for index in asking) for rule in added)
    assert settled(settled(before, kept), kept).rules == after


def test_denials_are_told_once_a_minute_and_not_without_end() -> None:
    now = 0.0
    denials = Denials(lambda: now)
    assert [denials.fresh("sb", ("a", 1)) for _ in range(3)] == [True, False, False]
    assert denials.fresh("sb", ("a", 2))
    assert denials.fresh("other", ("a", 1))
    assert sum(denials.fresh("sb", (f"x{number}", 1)) for number in range(1000)) == MOST - 2
    now = EVERY
    assert denials.fresh("sb", ("a", 1))
    assert not denials.fresh("sb", ("a", 1))
    denials.forget("sb")
    assert denials.fresh("sb", ("a", 1))
