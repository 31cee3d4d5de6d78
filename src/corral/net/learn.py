"""From what a sandbox did reach, the smallest policy that would have allowed it."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from corral.schema.egress import EgressPolicy, Flow, Preset, Rule, Verdict

WORLD = 1000
"""Destinations of one rule at most (`Rule.to`)."""
RULES = 256

_Key = tuple[str, int]


def propose(policy: EgressPolicy, flows: Iterable[Flow]) -> EgressPolicy:
    """Names before addresses, one rule for all that were used on the same ports; nothing that only was looked up; the rules of `policy` that deny or read content stay.

    A wildcard is never guessed, since what lies below a name may belong to anybody.
    """
    used: dict[str, set[_Key]] = {}
    for flow in flows:
        if flow.verdict is Verdict.DENIED or flow.kind == "dns":
            continue
        destination = flow.name or (str(ipaddress.ip_network(flow.address)) if flow.address else None)
        if destination is None or (flow.port is None and flow.kind != "icmp"):
            continue
        protocol = flow.kind if flow.kind in ("udp", "icmp") else "tcp"
        used.setdefault(destination, set()).add((protocol, flow.port or 0))
    kept = [rule for rule in policy.rules if rule.action == "deny" or rule.reads_content]
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
