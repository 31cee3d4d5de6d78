"""A policy, compiled: what the kernel decides by itself, and the decisions on names, connections and requests for resolver and proxy. Pure.

A rule that denies wins over every other; else the first rule that matches holds; else the default. Who decides what:

- TCP to the ports of `Nat` goes to the proxy, whatever its address. The proxy knows the name (SNI, Host) and dials its own resolution of it when a rule about names
  matched, the address that was dialled when one about addresses did.
- All else is the kernel's, in this order: `deny`; `allow`; never or special ranges: denied; then `Mode`. With `Mode.NAMES`, the resolver opens, before it answers,
  the addresses of an allowed name for the ports that `pins` tells, for the sandbox's present generation only.
- DNS, to whatever server, goes to the resolver unless `Nat.NONE`.

`*` in a rule that allows means every name and every public address: private ranges are opened by CIDR (or by the default `all`) only.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from corral.net import doh
from corral.net.content import HttpRequest, matches
from corral.net.ranges import LAST_ADDRESS, LAST_PORT, Box, Protocol, Span, complement, disjoint, spans, union, within
from corral.schema.egress import EgressPolicy, Preset, Rule

NEVER = spans("0.0.0.0/8", "127.0.0.0/8", "192.0.0.0/24", "198.18.0.0/15", "224.0.0.0/3")
"""Nobody reaches these, whatever a policy says: loopback, the switch's own services, other sandboxes, multicast and reserved. The host's own addresses besides."""
METADATA = spans("169.254.0.0/16", "168.63.129.16/32", "100.100.100.200/32")
"""Where clouds keep the credentials of a machine (Azure and Alibaba outside of the link-local range): opened by CIDR only, not even by `all`."""
PRIVATE = complement((*complement(spans("10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16")), *METADATA))
"""Opened by the default `all`, or by CIDR."""
PUBLIC = complement((*NEVER, *PRIVATE, *METADATA))
WEB_PORTS = frozenset({80, 443})
EVERYTHING: Span = (0, LAST_ADDRESS)
ALL_PORTS: Span = (0, LAST_PORT)


class Nat(StrEnum):
    """What is led to the edge process. Each includes those before it."""

    NONE = "none"
    DNS = "dns"
    PROXY = "proxy"
    """DNS, and TCP to the ports 80 and 443."""
    TCP = "tcp"
    """DNS, and TCP to every port."""


class Mode(StrEnum):
    """What the kernel does with what neither `deny` nor `allow` names and is in no special range."""

    CLOSED = "closed"
    NAMES = "names"
    """Pinned addresses are open, all else is closed."""
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class Kernel:
    """The kernel's part. Boxes of one list don't overlap; `deny` comes first."""

    nat: Nat
    mode: Mode
    allow: tuple[Box, ...] = ()
    deny: tuple[Box, ...] = ()

    @property
    def closed(self) -> bool:
        """Whether nothing passes at all, as with a member of the pool."""
        return self.nat is Nat.NONE and self.mode is Mode.CLOSED and not self.allow


class Action(StrEnum):
    ALLOW = "allow"
    DENY = "deny"
    ASK = "ask"


class By(StrEnum):
    """How a destination was recognised, hence what is to be dialled."""

    NAME = "name"
    """Our own resolution of the name."""
    ADDRESS = "address"
    """The address that the sandbox dialled."""


@dataclass(frozen=True, slots=True)
class Ruling:
    """What is to be done, by which rule (None: the default), and for a denial why."""

    action: Action
    rule: Rule | None = None
    by: By = By.NAME
    reason: str | None = None
    content: bool = False
    """Whether TLS must be ended, since the requests in it decide."""

    @property
    def title(self) -> str | None:
        return self.rule.title if self.rule else None


@dataclass(frozen=True, slots=True)
class _Rule:
    """A rule with its destinations sorted by kind."""

    rule: Rule
    action: Action
    names: frozenset[str]
    suffixes: frozenset[str]
    networks: tuple[Span, ...]
    every: bool
    """`*`, or the whole of IPv4: names are meant too."""
    protocols: tuple[Protocol, ...]
    ports: tuple[Span, ...]

    @classmethod
    def of(cls, rule: Rule) -> _Rule:
        networks = [ipaddress.IPv4Network(to) for to in rule.to if "/" in to]
        domains = [to for to in rule.to if "/" not in to and to != "*"]
        given = None if rule.ports is None else union(_port_span(text) for text in rule.ports)
        protocols = tuple(Protocol) if rule.protocol is None else (Protocol[rule.protocol.upper()],)
        if rule.reads_content:
            given = given or ((80, 80), (443, 443))
        if rule.reads_content or rule.action == "ask":
            protocols = (Protocol.TCP,)
        elif given is not None:
            # ICMP has no ports, so a rule that names some is not about it.
            protocols = tuple(protocol for protocol in protocols if protocol is not Protocol.ICMP)
        return cls(
            rule=rule,
            action=Action(rule.action),
            names=frozenset(to for to in domains if not to.startswith("*.")),
            suffixes=frozenset(to[2:] for to in domains if to.startswith("*.")),
            networks=union((int(network[0]), int(network[-1])) for network in networks),
            every="*" in rule.to or any(network.prefixlen == 0 for network in networks),
            protocols=protocols,
            ports=given or (ALL_PORTS,),
        )

    @property
    def whole(self) -> bool:
        """Whether it is about all of a destination's ports and requests."""
        return self.rule.http is None and self.rule.protocol is None and self.rule.ports is None

    @property
    def domains(self) -> bool:
        return bool(self.names or self.suffixes)

    def about_port(self, protocol: Protocol, port: int) -> bool:
        return protocol in self.protocols and (protocol is Protocol.ICMP or within(port, self.ports))

    def about_name(self, name: str) -> bool:
        if self.every or name in self.names:
            return True
        rest = name
        while self.suffixes and (rest := rest.partition(".")[2]):
            if rest in self.suffixes:
                return True
        return False

    def about_address(self, address: int) -> bool:
        if within(address, self.networks):
            return True
        return "*" in self.rule.to and (self.action is Action.DENY or within(address, PUBLIC))

    def matches(self, protocol: Protocol, port: int, address: int | None, name: str | None) -> By | None:
        if not self.about_port(protocol, port):
            return None
        if name is not None and self.about_name(name):
            return By.NAME
        if address is not None and self.about_address(address):
            return By.ADDRESS
        return None

    def boxes(self) -> list[Box]:
        """The addresses it names, for the kernel."""
        addresses = self.networks
        if "*" in self.rule.to:
            addresses = union((*addresses, *((EVERYTHING,) if self.action is Action.DENY else PUBLIC)))
        return [Box(p, *span, *ports) for p in self.protocols for span in addresses for ports in (self.ports if p is not Protocol.ICMP else (ALL_PORTS,))]


@dataclass(frozen=True, slots=True)
class Compiled:
    """A policy, ready to decide."""

    policy: EgressPolicy
    kernel: Kernel
    _rules: tuple[_Rule, ...] = field(repr=False)
    _allowed: tuple[Box, ...] = field(repr=False)
    """Ranges opened by CIDR or by `all`: where a name may point besides the public ones."""
    _asked: tuple[Box, ...] = field(default=(), repr=False)
    """Ranges about which people are asked. A name that points there is resolved; the connection is made by its address only, so that they are asked about that."""
    guarded: bool = False
    """Whether names are told apart although the internet is open, or noted down."""
    apart: bool = False
    """Whether some names are not reached although the internet is open, so that what names nothing is not let through to just any address of the web."""

    def brokers(self, name: str | None) -> bool:
        """Whether headers are set on requests to this name, so that its answers must not tell them."""
        return name is not None and any(rule.rule.inject and rule.about_name(name) for rule in self._rules)

    def reads(self, port: int) -> bool:
        """Whether what is sent to a TCP port is looked at for a name: the web's ports, and those of rules on HTTP."""
        return port in WEB_PORTS or any(rule.rule.reads_content and within(port, rule.ports) for rule in self._rules)

    def nameless(self, rule: Rule | None) -> bool:
        """Whether what names no server on the web's ports is refused although this rule (None: the default) opens its address, since some names are not reached."""
        return self.apart and (rule is None or not {"*", "0.0.0.0/0"}.isdisjoint(rule.to))

    def opened(self, port: int, address: int) -> Ruling | None:
        """By which rule a TCP connection passes that names no server on the web's ports, or None."""
        ruling = self.connection(Protocol.TCP, port, address, None)
        if ruling.action is Action.DENY or ruling.rule is None or ruling.content:
            return None
        for rule in self._rules:
            if rule.action is not Action.DENY and rule.matches(Protocol.TCP, port, address, None) and not self.nameless(rule.rule):
                return None if rule.rule.reads_content else self._checked(Ruling(rule.action, rule.rule, By.ADDRESS), address)
        return None

    @property
    def sinkhole(self) -> bool:
        """Whether a denied name is answered with the address that explains (else REFUSED), which only serves where the proxy is reached."""
        return self.kernel.nat in (Nat.PROXY, Nat.TCP)

    def name(self, name: str) -> Ruling:
        """Whether a name may be resolved: it may when something behind it could be reached."""
        for rule in self._rules:
            if rule.action is Action.DENY and rule.whole and rule.about_name(name):
                return _denied_by(rule, name)
        for rule in self._rules:
            if rule.action is not Action.DENY and rule.about_name(name):
                return (self._around(name, None, None) if rule.every else None) or Ruling(Action.ALLOW, rule.rule)
        return self._default(name, None)

    def alias(self, names: Iterable[str]) -> Ruling | None:
        """The refusal of an allowed name that leads (by CNAME) to one that a rule denies, or None. Names that no rule mentions are whatever the asked one is."""
        for name in names:
            for rule in self._rules:
                if rule.action is Action.DENY and rule.whole and rule.about_name(name):
                    return _denied_by(rule, name)
        return None

    def connection(self, protocol: Protocol, port: int, address: int | None, name: str | None) -> Ruling:
        """What is to become of a connection, when the name (None: it tells none) is known but nothing was read beyond it."""
        content = False
        for rule in self._rules:
            if rule.action is Action.DENY and rule.matches(protocol, port, address, name):
                if rule.rule.http is None:
                    return _denied_by(rule, name or _text(address))
                content = True
        for rule in self._rules:
            if rule.action is not Action.DENY and (by := rule.matches(protocol, port, address, name)):
                if rule.every and (around := self._around(name, address, port)) is not None:
                    return around
                if not rule.rule.reads_content:
                    return self._checked(Ruling(rule.action, rule.rule, by, content=content), address)
                content = True
                if rule.rule.http is None:
                    return Ruling(rule.action, rule.rule, by, content=True)
        ruling = self._default(name, address, port)
        if content and ruling.action is Action.DENY:
            # Which of the requests are allowed is told by `request`.
            return Ruling(Action.ALLOW, by=By.NAME if name else By.ADDRESS, content=True)
        return Ruling(ruling.action, ruling.rule, ruling.by, ruling.reason, content)

    def request(self, request: HttpRequest) -> Ruling:
        """What is to become of one HTTP request."""
        for deny in (True, False):
            for rule in self._rules:
                if (rule.action is Action.DENY) is not deny:
                    continue
                by = rule.matches(Protocol.TCP, request.port, request.address, request.name)
                if by and (rule.rule.http is None or matches(rule.rule.http, request, strict=not deny)):
                    if deny:
                        return _denied_by(rule, request.name or _text(request.address))
                    if by is By.ADDRESS and self.nameless(rule.rule):
                        continue
                    return self._checked(Ruling(rule.action, rule.rule, by), request.address)
        return self._default(request.name, request.address, request.port, request=request)

    def reachable(self, address: int, protocol: Protocol | None = None, port: int = 0) -> str | None:
        """Why the address that an allowed name points to must not be used, or None. Without a protocol: whether any port of it could be (for the resolver)."""
        if within(address, NEVER):
            return f"{_text(address)} is an address of this machine or a reserved one"
        for rule in self._rules:
            meant = rule.whole or (protocol is not None and rule.about_port(protocol, port))
            if meant and rule.action is Action.DENY and rule.rule.http is None and rule.about_address(address):
                return f"{_text(address)} is denied by the rule {rule.rule.title!r}"
        if within(address, PUBLIC):
            return None
        boxes = (*self._allowed, *self._asked) if protocol is None else self._allowed
        if any(box.first <= address <= box.last and (protocol is None or box.holds(protocol, address, port)) for box in boxes):
            return None
        return f"{_text(address)} is a private address, and no rule opens it"

    def pins(self, name: str) -> tuple[tuple[Protocol, int, int], ...]:
        """The protocols and ports that the kernel opens at an allowed name's addresses: what the proxy does not see."""
        if self.kernel.mode is not Mode.NAMES:
            return ()
        result: list[tuple[Protocol, int, int]] = []
        for protocol in Protocol:
            if protocol is Protocol.TCP and self.kernel.nat is Nat.TCP:
                continue
            open_ports = [ports for rule in self._rules if self._pins(rule, protocol, name) for ports in rule.ports]
            shut = [
                ports for rule in self._rules if rule.action is Action.DENY and protocol in rule.protocols and rule.about_name(name) for ports in rule.ports
            ]
            rest = union(open_ports)
            if shut:
                rest = complement((*complement(rest, LAST_PORT), *shut), LAST_PORT)
            result += [(protocol, low, high) for low, high in rest if protocol is not Protocol.TCP or _beyond_web((low, high))]
        return tuple(result)

    @staticmethod
    def _pins(rule: _Rule, protocol: Protocol, name: str) -> bool:
        return rule.action is Action.ALLOW and not rule.rule.reads_content and protocol in rule.protocols and rule.domains and rule.about_name(name)

    def _checked(self, ruling: Ruling, address: int | None) -> Ruling:
        if ruling.by is By.ADDRESS and address is not None and within(address, NEVER):
            return Ruling(Action.DENY, ruling.rule, reason=f"{_text(address)} is an address of this machine or a reserved one")
        return ruling

    def _around(self, name: str | None, address: int | None, port: int | None) -> Ruling | None:
        """The refusal of a resolver by which a sandbox would get at names that its policy tells apart; None: it is none. Only a rule that names it opens it, not one about everything."""
        hidden = address is not None and port is not None and within(address, doh.ADDRESSES) and within(port, doh.TLS_PORTS)
        if self.guarded and (name in doh.NAMES if name is not None else hidden):
            return Ruling(Action.DENY, reason=f"{name or _text(address)} resolves names over HTTPS, which would go around the egress policy")
        return None

    def _default(self, name: str | None, address: int | None, port: int | None = None, *, request: HttpRequest | None = None) -> Ruling:
        if (around := self._around(name, address, port)) is not None:
            return around
        asked = name or (_text(address) if address is not None else "this")
        if request is not None and any(rule.rule.http for rule in self._rules if rule.matches(Protocol.TCP, request.port, request.address, request.name)):
            asked = f"{request.method} {request.path} of {asked}"
        if request is not None and name is None and self.apart:
            return Ruling(Action.DENY, reason=f"the request to {asked} names no server, and names are told apart")
        if self.policy.default is Preset.NONE:
            return Ruling(Action.DENY, reason=f"no rule of the egress policy allows {asked}")
        if name is not None:
            return Ruling(Action.ALLOW, by=By.NAME)
        if address is None or within(address, PUBLIC) or (self.policy.default is Preset.ALL and within(address, PRIVATE)):
            return Ruling(Action.ALLOW, by=By.ADDRESS)
        return Ruling(Action.DENY, reason=f"{asked} is not a public address, and no rule of the egress policy allows it")


def compile(policy: EgressPolicy) -> Compiled:
    """Raises `InvalidArgument` when it comes to more ranges than the kernel takes."""
    rules = tuple(map(_Rule.of, policy.rules))
    if policy.closed:
        return Compiled(policy, Kernel(Nat.NONE, Mode.CLOSED), rules, ())
    open_by_default = policy.default is not Preset.NONE
    private = [Box(protocol, *span) for protocol in Protocol for span in PRIVATE] if policy.default is Preset.ALL else []
    allowed = private + [box for rule in rules if rule.action is Action.ALLOW and not rule.rule.reads_content for box in rule.boxes()]
    # What the mode opens anyhow needs no element.
    listed = [box for box in allowed if not (open_by_default and any(first <= box.first and box.last <= last for first, last in PUBLIC))]
    denied = [box for rule in rules if rule.action is Action.DENY and rule.rule.http is None for box in rule.boxes()]
    if _guards_names(policy, rules):
        open_on_purpose = [span for rule in rules if rule.action is Action.ALLOW and not rule.every for span in rule.networks]
        hidden = [span for span in doh.ADDRESSES if not any(first <= span[0] and span[1] <= last for first, last in open_on_purpose)]
        denied += [Box(p, *span, *ports) for p in (Protocol.TCP, Protocol.UDP) for span in hidden for ports in doh.TLS_PORTS]
    if not policy.quic:
        denied.append(Box(Protocol.UDP, *EVERYTHING, 443, 443))
    pinned = any(rule.action is Action.ALLOW and rule.domains and not rule.rule.reads_content for rule in rules)
    mode = Mode.OPEN if open_by_default else Mode.NAMES if pinned else Mode.CLOSED
    asked = tuple(box for rule in rules if rule.action is Action.ASK for box in rule.boxes())
    kernel = Kernel(_nat(policy, rules), mode, disjoint(listed), disjoint(denied))
    return Compiled(policy, kernel, rules, tuple(allowed), asked, guarded=_guards_names(policy, rules), apart=_tells_apart(policy, rules))


def _nat(policy: EgressPolicy, rules: tuple[_Rule, ...]) -> Nat:
    for rule in rules:
        # The kernel can neither wait nor read, and knows no names: that one port of a name is denied is held by the proxy, which knows what was resolved.
        proxied = rule.action is Action.ASK or rule.rule.reads_content or (rule.action is Action.DENY and rule.domains and not rule.whole)
        if proxied and Protocol.TCP in rule.protocols and any(map(_beyond_web, rule.ports)):
            return Nat.TCP
    if policy.learn or any(rule.domains or rule.rule.reads_content or rule.action is Action.ASK for rule in rules):
        return Nat.PROXY
    return Nat.DNS


def _guards_names(policy: EgressPolicy, rules: tuple[_Rule, ...]) -> bool:
    """Whether names are told apart although the internet is open, so that resolvers of others would be a way around."""
    return _tells_apart(policy, rules) or (policy.learn and _open_to_all(policy, rules))


def _tells_apart(policy: EgressPolicy, rules: tuple[_Rule, ...]) -> bool:
    return _open_to_all(policy, rules) and any(rule.domains and rule.action is not Action.ALLOW for rule in rules)


def _open_to_all(policy: EgressPolicy, rules: tuple[_Rule, ...]) -> bool:
    return policy.default is not Preset.NONE or any(rule.every and rule.action is Action.ALLOW for rule in rules)


def _beyond_web(ports: Span) -> bool:
    return ports not in ((80, 80), (443, 443))


def _port_span(text: str) -> Span:
    low, _, high = text.partition("-")
    return int(low), int(high or low)


def _text(address: int | None) -> str:
    return str(ipaddress.IPv4Address(address)) if address is not None else "this"


def _denied_by(rule: _Rule, asked: str) -> Ruling:
    return Ruling(Action.DENY, rule.rule, reason=f"the rule {rule.rule.title!r} of the egress policy denies {asked}")
