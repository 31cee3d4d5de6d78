"""What a decision about one connection means for policies: a rule, no wider than the question was, before the rule that asked."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Literal

from corral.errors import Conflict
from corral.schema.egress import Approval, EgressPolicy, Rule


def answer(policy: EgressPolicy, asked: Approval, decision: Literal["allow", "deny"]) -> Rule:
    """The rule that answers this question from now on. Raises `Conflict` when the policy would not ask it any more."""
    for rule in policy.rules:
        if rule.action == "ask" and asked.rule in (None, rule.title) and (target := _target(rule, asked)) is not None:
            ports = rule.ports if asked.port is None else [str(asked.port)]
            return Rule.model_validate({**rule.model_dump(exclude={"name"}), "to": [target], "ports": ports, "action": decision})
    raise Conflict("the sandbox's policy has been changed since it asked", hint='decide with the scope "once", or change the policy')


def settled(policy: EgressPolicy, answers: Sequence[Rule]) -> EgressPolicy:
    """The policy with each answer before every rule that would ask the same."""
    rules: list[Rule] = []
    for rule in policy.rules:
        if rule.action == "ask":
            rules += [given for given in answers if _asks(rule, given) and given not in rules]
        rules.append(rule)
    return policy if len(rules) == len(policy.rules) else policy.model_copy(update={"rules": rules})


def _asks(rule: Rule, given: Rule) -> bool:
    """Whether `rule` asks what `given` answers."""
    same = (rule.http, rule.inspect, rule.protocol) == (given.http, given.inspect, given.protocol)
    return same and _within(given.ports, rule.ports) and all(any(_covers(to, wanted) for to in rule.to) for wanted in given.to)


def _target(rule: Rule, asked: Approval) -> str | None:
    """The destination as this rule sees it: by its name where it names names, else by its address."""
    if asked.port is not None and not _within([str(asked.port)], rule.ports):
        return None
    for known in (asked.name, None if asked.address is None else f"{asked.address}/32"):
        if known is not None and any(_covers(to, known) for to in rule.to):
            return known
    return None


def _covers(to: str, wanted: str) -> bool:
    """`wanted` is a name, or a range of addresses."""
    if to in ("*", "0.0.0.0/0", wanted):
        return True
    if "/" in to:
        return "/" in wanted and ipaddress.IPv4Network(wanted).subnet_of(ipaddress.IPv4Network(to))
    return to.startswith("*.") and "/" not in wanted and wanted.endswith(to[1:])


def _within(ports: Sequence[str] | None, wider: Sequence[str] | None) -> bool:
    if wider is None:
        return True
    spans = [_span(text) for text in wider]
    return ports is not None and all(any(low <= first and last <= high for low, high in spans) for first, last in map(_span, ports))


def _span(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    return int(first), int(last or first)
