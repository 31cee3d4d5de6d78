"""What a sandbox may reach, and what it did reach: policies, flows, denials, approvals."""

from __future__ import annotations

import ipaddress
import re
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from corral.schema.model import Answer, Request

_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_DOMAIN = re.compile(rf"(\*\.)?{_LABEL}(\.{_LABEL})*\Z")
_ADDRESS = re.compile(r"[0-9./]+\Z|[0-9A-Fa-f:./%]*:")
"""What can be an address at all: telling that of a name by trying costs more than all the rest."""
_DEVIANT = re.compile("[\u00df\u03c2\u200c\u200d]")
"""Characters that IDNA 2003 replaces or drops and IDNA 2008 keeps (UTS 46, 4.1.1): ß, ς and two joiners."""
_DESTINATIONS = 5000
_RANGES = 10_000
_FOREIGN = 100
"""Encoding one takes up to two milliseconds."""


def _destination(text: str) -> str:
    if text == "*":
        return text
    if not _ADDRESS.match(text):
        return _domain(text)
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        return _domain(text)
    if network.version != 4:
        raise ValueError(f"{text!r}: sandboxes have no IPv6, so there is nothing to allow or deny; use IPv4")
    return str(network)


def _domain(text: str) -> str:
    name = text.lower().rstrip(".")
    # Longer ones can be given as they are encoded.
    if _DEVIANT.search(name):
        raise ValueError(f"{text!r} is one name to older programs and another to newer ones; give it as it is encoded (xn--…)")
    if not name.isascii() and len(name) <= 100 and all(len(label) < 64 for label in name.split(".")):
        name = name.encode("idna").decode()
    if len(name) > 253 or not _DOMAIN.match(name):
        raise ValueError(f"{text!r} is neither an IPv4 address or range (10.0.0.0/8) nor a domain (api.example.com, *.example.com) nor *")
    return name


def _ports(text: str) -> str:
    first, _, last = text.partition("-")
    if not (first.isdecimal() and (last or first).isdecimal() and 1 <= int(first) <= int(last or first) <= 65_535):
        raise ValueError(f"{text!r} is neither a port (443) nor a range of ports (8000-8999)")
    return text


Destination = Annotated[str, Field(min_length=1, max_length=255), AfterValidator(_destination)]
"""An IPv4 address or CIDR, a domain, a wildcard (`*.example.com`: every name below it, not itself), or `*`."""
Ports = Annotated[
    str, Field(min_length=1, max_length=11), BeforeValidator(lambda value: str(value) if isinstance(value, int) else value), AfterValidator(_ports)
]
"""`443`, or `8000-8999`."""
HeaderName = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")]
HeaderValue = Annotated[str, Field(max_length=8192, pattern=r"^[^\r\n\x00]*$")]

PLACEHOLDER = re.compile(r"\{\{([A-Za-z0-9_-]{1,128})\}\}")
"""Where the value of a secret goes."""


class Preset(StrEnum):
    """What holds for a destination that no rule names."""

    NONE = "none"
    """Nothing is reachable."""
    PUBLIC = "public"
    """The internet, but neither private, link-local, metadata nor multicast ranges, nor the host."""
    ALL = "all"
    """Everything, private ranges too; never the host itself nor other sandboxes."""


class HttpMatch(Request):
    """Which HTTP requests a rule is about. All that are given must hold. Patterns know `*` (anything, `/` too) and `?`."""

    methods: list[Annotated[str, Field(pattern=r"^[A-Z]{1,32}$")]] | None = Field(None, min_length=1, max_length=32)
    path: str | None = Field(None, min_length=1, max_length=4096, description="pattern for the path, percent-decoded once and without dot segments")
    headers: dict[HeaderName, HeaderValue] | None = Field(None, min_length=1, max_length=32, description="patterns for values")
    query: dict[Annotated[str, Field(max_length=256)], Annotated[str, Field(max_length=4096)]] | None = Field(None, min_length=1, max_length=32)


class HttpAnswer(Request):
    """A fixed answer given in place of the real server's."""

    status: int = Field(200, ge=200, le=599)
    headers: dict[HeaderName, HeaderValue] = Field(default_factory=dict, max_length=64)
    body: str = Field("", max_length=65_536)


class Rule(Request):
    """What happens to connections (and, with any of the HTTP fields, to single requests) that it matches."""

    name: Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]+$")] | None = Field(
        None, description="what denials and flows call it; default: its first destination"
    )
    to: list[Destination] = Field(min_length=1, max_length=1000)
    ports: list[Ports] | None = Field(None, min_length=1, max_length=64, description="null: every port; for HTTP rules 80 and 443")
    protocol: Literal["tcp", "udp", "icmp"] | None = Field(None, description="null: every one; HTTP rules are tcp")
    action: Literal["allow", "deny", "ask"] = "allow"
    http: HttpMatch | None = None
    inspect: bool = Field(False, description="end TLS, so that Host is checked against SNI; implied by every other HTTP field")
    inject: dict[HeaderName, HeaderValue] | None = Field(
        None, min_length=1, max_length=32, description="headers set on each request; `{{NAME}}` is the value of that secret"
    )
    proxy: str | None = Field(
        None, max_length=2048, pattern=r"^https?://[^/?#\s]+$", description="send the requests there; the wanted URL is in `Corral-Original-Url`"
    )
    respond: HttpAnswer | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Rule:
        if sum(field is not None for field in (self.inject, self.proxy, self.respond)) > 1:
            raise ValueError("a rule does one thing: give one of inject, proxy, respond")
        if self.action != "allow" and (self.inject or self.proxy or self.respond):
            raise ValueError(f"a rule that says {self.action} can't also inject, proxy or respond")
        if self.action == "ask" and self.protocol in ("udp", "icmp"):
            raise ValueError("only tcp connections can wait for a decision: packets of udp and icmp are allowed or denied")
        if self.reads_content:
            if any("/" in to for to in self.to):
                raise ValueError("rules on HTTP name domains, or *, not addresses: which server is meant is told by name")
            if self.protocol not in (None, "tcp"):
                raise ValueError("HTTP is tcp")
        for name, value in (self.inject or {}).items():
            if "{{" in PLACEHOLDER.sub("", value):
                raise ValueError(f"inject: the value of {name} has braces that name no secret: write {{{{NAME}}}}, without spaces")
        if self.inject is not None and "*" in self.to:
            raise ValueError("headers are injected for named domains only, else a secret could go anywhere")
        return self

    @property
    def reads_content(self) -> bool:
        """Whether it needs TLS to be ended."""
        return self.inspect or any(field is not None for field in (self.http, self.inject, self.proxy, self.respond))

    @property
    def title(self) -> str:
        return self.name or self.to[0]


class Budget(Request):
    """Limits of a sandbox's traffic; null: none but the node's own."""

    upload: float | None = Field(default=None, gt=0, le=100_000, allow_inf_nan=False, description="Mbit/s")
    download: float | None = Field(default=None, gt=0, le=100_000, allow_inf_nan=False, description="Mbit/s")
    connections: int | None = Field(default=None, ge=1, le=10_000, description="open at once; null: 1,000")
    bytes: int | None = Field(default=None, ge=0, le=1 << 50, description="both ways together; beyond it, everything is denied")


class EgressPolicy(Request):
    """What a sandbox may reach. A rule that denies wins over every other, else the first rule that matches holds, else `default`."""

    default: Preset = Preset.NONE
    rules: list[Rule] = Field(default_factory=list[Rule], max_length=256)
    learn: bool = Field(default=False, description="allow everything that `default` allows, record it, and propose the smallest list of rules")
    quic: bool = Field(default=False, description="let UDP 443 pass; where it does, the name in it is not checked")
    ask_timeout: float = Field(default=60, gt=0, le=3600, allow_inf_nan=False, description="seconds a connection waits for a decision")
    ask_default: Literal["allow", "deny"] = "deny"
    budget: Budget = Field(default_factory=Budget)

    @model_validator(mode="before")
    @classmethod
    def _bounded(cls, value: Any) -> Any:
        """Before anything is looked at in detail, which takes its time."""
        destinations = [to for rule in _list(value, "rules") for to in _list(rule, "to")]
        if len(destinations) > _DESTINATIONS:
            raise ValueError(f"rules: more than {_DESTINATIONS:,} destinations together; use wildcards and ranges")
        if sum(isinstance(to, str) and not to.isascii() for to in destinations) > _FOREIGN:
            raise ValueError(f"rules: more than {_FOREIGN} names that are not ASCII; give them as they are encoded (xn--…)")
        return value

    @model_validator(mode="after")
    def _tabled(self) -> EgressPolicy:
        """Each range of addresses takes an element of the kernel's tables for each range of ports."""
        ranges = sum(sum("/" in to for to in rule.to) * len(rule.ports or ".") for rule in self.rules)
        if ranges > _RANGES:
            raise ValueError(f"rules: more than {_RANGES:,} ranges of addresses and ports together; use larger ones")
        return self

    @property
    def closed(self) -> bool:
        """Whether nothing at all is reachable."""
        return self.default is Preset.NONE and all(rule.action == "deny" for rule in self.rules)

    @property
    def inspects(self) -> bool:
        """Whether some TLS is ended, so that the sandbox must trust the installation's CA."""
        return any(rule.reads_content for rule in self.rules)

    @property
    def secrets(self) -> frozenset[str]:
        """Names of the secrets its rules use."""
        return frozenset(name for rule in self.rules for value in (rule.inject or {}).values() for name in PLACEHOLDER.findall(value))


def _list(value: Any, name: str) -> list[Any]:
    found: Any = cast("dict[str, Any]", value).get(name) if isinstance(value, dict) else None
    return cast("list[Any]", found) if isinstance(found, list) else []


def policy(value: Any) -> Any:
    """`"public"` for `{"default": "public"}`."""
    return {"default": value} if isinstance(value, str) else value


Egress = Annotated[EgressPolicy, BeforeValidator(policy)]
"""A policy, or the name of a preset."""


class Verdict(StrEnum):
    """What became of a connection, a query or a request."""

    ALLOWED = "allowed"
    DENIED = "denied"
    FAILED = "failed"
    """Allowed, but the other side could not be reached."""


class Flow(Answer):
    """One line of the flow log: a connection, an HTTP request where TLS was ended, or a DNS query."""

    seq: int
    at: datetime
    sandbox: str
    kind: Literal["tcp", "udp", "icmp", "dns", "http", "tls"]
    name: str | None = Field(None, description="the domain, as asked for, sent as SNI, or as Host")
    address: str | None = None
    port: int | None = None
    method: str | None = None
    path: str | None = Field(None, description="without the query")
    status: int | None = None
    verdict: Verdict
    rule: str | None = Field(None, description="title of the rule that decided; null: the default")
    reason: str | None = Field(None, description="of a denial or failure, one sentence")
    secrets: list[str] = Field(default_factory=list, description="names of those used")
    sent: int = Field(0, description="bytes from the sandbox")
    received: int = Field(0, description="bytes to the sandbox")
    duration: float | None = Field(None, description="seconds; null: it has not ended")


class Flows(Answer):
    """GET /v1/sandboxes/{id}/egress/flows (all) and …/denials (the denied only), oldest first."""

    flows: list[Flow]
    next: int | None = Field(None, description="`after` of the next page")


class Approval(Answer):
    """A connection that waits for somebody's decision."""

    id: str
    sandbox: str
    name: str | None
    address: str | None
    port: int | None
    rule: str | None
    method: str | None = None
    path: str | None = None
    asked_at: datetime
    deadline: datetime
    decision: Literal["allow", "deny"] | None = None
    scope: Literal["once", "sandbox", "always"] | None = None


class Approvals(Answer):
    """GET /v1/approvals: those that wait."""

    approvals: list[Approval]


class Decision(Request):
    """POST /v1/approvals/{id}."""

    decision: Literal["allow", "deny"]
    scope: Literal["once", "sandbox", "always"] = Field(
        "once", description="this connection; this destination for this sandbox; for the project's sandboxes from now on"
    )


class KeptRule(Answer):
    """A decision with the scope `always`: put before every rule of the project's policies that would ask the same."""

    id: str
    rule: Rule
    decided_at: datetime
    decided_by: str = Field(description="a key's id")


class KeptRules(Answer):
    """GET /v1/approvals/rules."""

    rules: list[KeptRule]


class EgressView(Answer):
    """GET and PUT /v1/sandboxes/{id}/egress."""

    policy: EgressPolicy
    sent: int = Field(default=0, description="bytes from the sandbox so far")
    received: int = 0
    proposal: EgressPolicy | None = Field(default=None, description="of a learning policy: the smallest that would have allowed what was used")
