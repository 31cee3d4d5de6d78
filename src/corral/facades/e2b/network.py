"""E2B's network options as an egress policy. There, what is allowed wins over what is denied; in a policy it is the other way round, so ranges are taken apart here."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence

from pydantic import Field

from corral.facades.e2b.body import Body
from corral.facades.e2b.refusal import Refused
from corral.schema.egress import EgressPolicy, Preset, Rule

Range = ipaddress.IPv4Network
EVERYTHING = Range("0.0.0.0/0")
_MOST_RANGES = 900
_SECRET = re.compile(r"\$\{e2b\.secrets\.([A-Za-z0-9_-]+)\}")


class Transform(Body):
    """Headers set on each request."""

    headers: dict[str, str] | None = None


class TransformRule(Body):
    """One rule of a domain."""

    transform: Transform | None = None


class Egress(Body):
    """What a sandbox may reach."""

    allow_out: list[str] | None = Field(default=None, max_length=1000)
    deny_out: list[str] | None = Field(default=None, max_length=1000)
    rules: dict[str, list[TransformRule]] | None = Field(default=None, max_length=100)
    egress_proxy: dict[str, object] | None = None


class Network(Egress):
    """`network` of a create."""

    allow_public_traffic: bool | None = None
    mask_request_host: str | None = None
    https_ports: list[int] | None = None


def policy(wanted: Egress, *, internet: bool | None) -> EgressPolicy:
    """The policy that does the same. Raises `Refused` for what can't be done."""
    if wanted.egress_proxy:
        raise Refused(400, "egressProxy: traffic can't be sent through a SOCKS proxy here; use rules of an egress policy with `proxy` instead")
    ranges, names = _sorted(wanted.allow_out or [], "allowOut")
    denied, denied_names = _sorted(wanted.deny_out or [], "denyOut")
    if denied_names:
        raise Refused(400, f"invalid denied CIDR {denied_names[0]}; names can be allowed, not denied")
    open_to_all = EVERYTHING in ranges or (internet is not False and EVERYTHING not in denied)
    if names and open_to_all and EVERYTHING not in ranges:
        raise Refused(400, "When specifying allowed domains in allow out, you must include 'ALL_TRAFFIC' in deny out to block all other traffic.")
    allowed = [one for one in ranges if one != EVERYTHING]
    rules = _injecting(wanted.rules or {}, names, open_to_all=open_to_all)
    if open_to_all and (closed := _without(denied, [*allowed, *([EVERYTHING] if EVERYTHING in ranges else [])])):
        rules.append(_rule(name="denyOut", to=[str(one) for one in closed], action="deny"))
    if allowed or names:
        rules.append(_rule(name="allowOut", to=[*map(str, allowed), *names]))
    return EgressPolicy(default=Preset.PUBLIC if open_to_all else Preset.NONE, rules=rules)


def _rule(**fields: object) -> Rule:
    return Rule.model_validate(fields)


def _sorted(given: Sequence[str], name: str) -> tuple[list[Range], list[str]]:
    """Ranges, and what is none."""
    ranges: list[Range] = []
    names: list[str] = []
    for text in given:
        try:
            found = ipaddress.ip_network(text, strict=False)
        except ValueError:
            names.append(text)
            continue
        if not isinstance(found, Range):
            raise Refused(400, f"{name}: {text!r}: sandboxes have no IPv6, so there is nothing to allow or deny")
        ranges.append(found)
    return ranges, names


def _without(ranges: Iterable[Range], holes: Sequence[Range]) -> list[Range]:
    """The ranges, where the holes are not."""
    left = list(ipaddress.collapse_addresses(ranges))
    for hole in holes:
        left = [part for one in left for part in _outside(one, hole)]
        if len(left) > _MOST_RANGES:
            raise Refused(400, f"denyOut and allowOut overlap in more than {_MOST_RANGES} pieces; use larger ranges")
    return left


def _outside(one: Range, hole: Range) -> Iterable[Range]:
    if one.subnet_of(hole):
        return []
    return one.address_exclude(hole) if hole.subnet_of(one) else [one]


def _injecting(rules: Mapping[str, Sequence[TransformRule]], names: Sequence[str], *, open_to_all: bool) -> list[Rule]:
    """Headers for domains. A domain is not reachable by having such a rule."""
    made: list[Rule] = []
    for domain, wanted in rules.items():
        headers = {name: value for one in wanted if one.transform is not None for name, value in (one.transform.headers or {}).items()}
        if headers and (open_to_all or any(_covers(name, domain) for name in names)):
            made.append(_rule(name=f"headers for {domain}"[:63], to=[domain], inject={name: _with_secrets(value) for name, value in headers.items()}))
    return made


def _with_secrets(value: str) -> str:
    """`${e2b.secrets.name}` is where a secret goes."""
    if "${e2b.identity" in value:
        raise Refused(400, "rules: sandboxes have no workload identity here; use secrets")
    return _SECRET.sub(lambda found: "{{" + found[1].lower() + "}}", value)


def _covers(allowed: str, domain: str) -> bool:
    return allowed in ("*", domain) or (allowed.startswith("*.") and domain.endswith(allowed[1:]))
