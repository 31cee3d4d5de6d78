"""From what a sandbox did reach, the smallest policy that would have allowed it."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from corral.net import policy as kernel
from corral.net.content import like
from corral.net.policy import PUBLIC, Action
from corral.net.ranges import Protocol, within
from corral.schema.egress import EgressPolicy, Flow, Preset, Rule, Verdict

WORLD = 1000
"""Destinations of one rule at most (`Rule.to`)."""
RULES = 256

_Key = tuple[str, int]


def propose(policy: EgressPolicy, flows: Iterable[Flow]) -> EgressPolicy:
    """Names before addresses, one rule for all that were used on the same ports; nothing that only was looked up, nor what `policy` itself would not have let pass.

    A wildcard is never guessed, since what lies below a name may belong to anybody. Of the rules of `policy`, those that deny stay; those that read content stay for
    the names that they were used for, and open no more of them than they did.
    """
    compiled = kernel.compile(policy)
    content = [rule for rule in policy.rules if rule.action != "deny" and rule.reads_content]
    served: list[set[str]] = [set() for _ in content]
    used: dict[str, set[_Key]] = {}
    for flow in flows:
        if flow.verdict is Verdict.DENIED or flow.kind == "dns" or (flow.port is None and flow.kind != "icmp"):
            continue
        protocol, port = flow.kind if flow.kind in ("udp", "icmp") else "tcp", flow.port or 0
        number = int(ipaddress.IPv4Address(flow.address)) if flow.address else None
        if (flow.name is None and number is None) or compiled.connection(Protocol[protocol.upper()], port, number, flow.name).action is Action.DENY:
            continue
        by = next((n for n, rule in enumerate(content) if _read_by(rule, flow)), None)
        if by is not None and flow.name is not None:
            served[by].add(flow.name)
        else:
            used.setdefault(flow.name or f"{flow.address}/32", set()).add((protocol, port))
        led = flow.verdict is Verdict.ALLOWED and (by is None or not (content[by].respond or content[by].proxy))
        if flow.name is not None and number is not None and led and not within(number, PUBLIC):
            # A name opens no private range, wherever it points.
            used.setdefault(f"{flow.address}/32", set()).add((protocol, port))
    kept = [rule for rule in policy.rules if rule.action == "deny"]
    kept += [rule.model_copy(update={"to": sorted(names)[:WORLD]}) for rule, names in zip(content, served, strict=True) if names]
    together: dict[tuple[str, frozenset[int]], list[str]] = {}
    for destination, keys in sorted(used.items()):
        for protocol in ("tcp", "udp", "icmp"):
            ports = frozenset(port for kind, port in keys if kind == protocol)
            if ports:
                together.setdefault((protocol, ports), []).append(destination)
    rules = [
        _rule(protocol, ports, destinations[start : start + WORLD])
        for (protocol, ports), destinations in together.items()
        for start in range(0, len(destinations), WORLD)
    ]
    return policy.model_copy(update={"default": Preset.NONE, "learn": False, "rules": [*kept, *rules][:RULES]})


def _read_by(rule: Rule, flow: Flow) -> bool:
    """Whether it is the rule that let this request through, as far as the flow tells."""
    match = rule.http
    return (
        flow.kind == "http"
        and flow.rule == rule.title
        and (match is None or match.methods is None or flow.method in match.methods)
        and (match is None or match.path is None or like(match.path, flow.path or "/"))
    )


def _rule(protocol: str, ports: frozenset[int], destinations: list[str]) -> Rule:
    return Rule.model_validate({"to": destinations, "protocol": protocol, "ports": None if protocol == "icmp" else _runs(ports)})


def _runs(ports: frozenset[int]) -> list[str] | None:
    """Neighbouring ports joined; more runs than a rule takes become every port."""
    runs: list[list[int]] = []
    for port in sorted(ports):
        if runs and runs[-1][1] == port - 1:
            runs[-1][1] = port
        else:
            runs.append([port, port])
    return [str(low) if low == high else f"{low}-{high}" for low, high in runs] if len(runs) <= 64 else None
