"""Heads of HTTP requests: what they say, what is wrong with them, and how they are sent on. No I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import h11

from corral.net.content import HttpRequest
from corral.net.dns import is_name
from corral.net.policy import Action, Ruling
from corral.schema.egress import PLACEHOLDER

SIZE: Final = 64 << 10
"""Bytes of a head at most."""
TARGET: Final = 8 << 10
"""Bytes of a request's target at most: what most servers take."""
_HOST = re.compile(r"(?P<name>[A-Za-z0-9_.-]{1,254})(:[0-9]{1,5})?\Z")
_ADDRESS = re.compile(r"[0-9.]+\Z")
_ABSOLUTE = re.compile(r"https?://([^/?#]*)")
HOP = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"te", b"upgrade", b"expect", b"proxy-authorization", b"http2-settings"})
"""Headers of one connection (RFC 9110, 7.6.1), which are not sent on."""
ORIGINAL_URL: Final = b"Corral-Original-Url"
"""Tells a proxy of the user's which URL was wanted; what the sandbox says in it is not sent on."""
FRAMING = frozenset({b"content-length", b"transfer-encoding", b"host"})

Headers = list[tuple[bytes, bytes]]
Scheme = Literal["http", "https"]


class RefusedError(Exception):
    """The request is answered by us. `ruling` says why; a status other than 403 is about the request itself."""

    def __init__(self, ruling: Ruling, status: int = 403) -> None:
        super().__init__(ruling.reason)
        self.ruling, self.status = ruling, status


@dataclass(frozen=True)
class Onward:
    """What is sent to the real server."""

    headers: Headers
    secrets: tuple[str, ...]
    """Names of those used."""
    websocket: bool

    def __repr__(self) -> str:
        return f"<Onward: {len(self.headers)} headers>"


def facts(event: h11.Request, *, sni: str | None, scheme: Scheme, address: int, port: int) -> HttpRequest:
    """For rules. The name is the one that TLS was begun with, or else the Host."""
    headers = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in event.headers)
    name = sni if scheme == "https" else named(dict(headers).get("host", ""))
    target = event.target.decode("latin-1")
    if absolute := _ABSOLUTE.match(target):
        target = target[absolute.end() :] or "/"
    return HttpRequest(event.method.decode("latin-1"), target, name, address, port, headers)


def check(event: h11.Request, request: HttpRequest, *, sni: str | None, scheme: Scheme) -> None:
    """Raises `RefusedError` for what no rule can allow, since a server might read it otherwise than we do."""
    if (fault := _fault(event, request)) is not None:
        raise RefusedError(Ruling(Action.DENY, reason=fault[1]), fault[0])
    hosts = _hosts(event)
    if scheme == "https" and hosts and named(hosts[0]) != sni:
        raise RefusedError(Ruling(Action.DENY, reason=f"the Host {hosts[0]} is not the server that the TLS connection names ({sni or 'none'})"))


def _fault(event: h11.Request, request: HttpRequest) -> tuple[int, str] | None:
    names = [name for name, _ in event.headers]
    hosts = _hosts(event)
    target = event.target.decode("latin-1")
    framing = names.count(b"content-length") + names.count(b"transfer-encoding")
    if sum(len(name) + len(value) + 4 for name, value in event.headers) + len(event.target) > SIZE:
        return 431, f"a head of more than {SIZE >> 10} KiB"
    if len(event.target) > TARGET:
        return 414, f"a target of more than {TARGET >> 10} KiB"
    if "#" in target or "..;" in target:
        return 400, "a target that servers read differently"
    if framing > 1 or (b"transfer-encoding" in names and event.http_version < b"1.1"):
        return 400, "a request with two lengths"
    if len(hosts) > 1 or (hosts and _host(hosts[0]) is None):
        return 400, "a request without exactly one proper Host"
    if event.method in (b"TRACE", b"TRACK", b"CONNECT"):
        return 403, f"{event.method.decode()} is not passed on: it would show what is set on requests, or hide what they are"
    if absolute := _ABSOLUTE.match(target):
        if not hosts or absolute[1].lower() != hosts[0].lower():
            return 400, "a request whose target and Host differ"
    elif not target.startswith("/") and not (target == "*" and event.method == b"OPTIONS"):
        return 400, "a request without a proper target"
    try:
        _ = request.query
    except ValueError:
        return 400, "a request with too many fields in its query"
    return None


def onward(event: h11.Request, ruling: Ruling, *, secrets: Mapping[str, str], brokered: bool, scheme: Scheme) -> Onward:
    """The headers as they are sent on. `brokered`: answers of this host must not tell secrets. Raises `RefusedError` when a secret can't be used."""
    rule = ruling.rule
    connection = [token.strip().lower() for name, value in event.headers if name == b"connection" for token in value.split(b",")]
    websocket = b"upgrade" in connection and any(name == b"upgrade" and value.strip().lower() == b"websocket" for name, value in event.headers)
    dropped = (HOP | set(connection)) - FRAMING
    added: Headers = []
    used: list[str] = []
    for name, text in (rule.inject if rule and rule.inject else {}).items():
        wanted = PLACEHOLDER.findall(text)
        if missing := [secret for secret in wanted if secret not in secrets]:
            raise RefusedError(Ruling(Action.DENY, rule, reason=f"the secret {missing[0]} that the rule uses does not exist"))
        if wanted and scheme != "https":
            raise RefusedError(Ruling(Action.DENY, rule, reason="secrets are sent over TLS only: use https"))
        used += wanted
        value = PLACEHOLDER.sub(lambda found: secrets[str(found[1])], text)
        if any(character in value for character in "\r\n\0"):
            raise RefusedError(Ruling(Action.DENY, rule, reason=f"the secret {wanted[0]} has more than one line, and can't be in a header"))
        added.append((name.encode(), value.strip().encode()))
    ours = [name for name, _ in added]
    if brokered:
        dropped |= {b"accept-encoding", b"range", b"if-range", b"request-range"}
        added.append((b"Accept-Encoding", b"identity"))
        # Extensions of websockets compress, and what is compressed can't be looked through.
        dropped |= {b"sec-websocket-extensions"}
    if websocket:
        added += [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
    kept = [
        (bytes(name), bytes(value)) for name, value in event.headers.raw_items() if name.lower() not in dropped and not any(same(name, our) for our in ours)
    ]
    return Onward(kept + added, tuple(dict.fromkeys(used)), websocket)


def same(name: bytes, other: bytes) -> bool:
    """Whether servers may take one header for the other: many know them as variables, in which `-` and `_` are one."""
    return name.lower().replace(b"_", b"-") == other.lower().replace(b"_", b"-")


def named(host: str) -> str | None:
    """The name in a Host, or None when it is an address or nothing."""
    name = _host(host)
    return None if name is None or is_address(name) else name


def is_address(host: str) -> bool:
    return _ADDRESS.match(host) is not None


def _hosts(event: h11.Request) -> list[str]:
    return [value.decode("latin-1") for name, value in event.headers if name == b"host"]


def _host(host: str) -> str | None:
    """What stands in a Host without the port, as rules know names; None when it is none."""
    found = _HOST.match(host)
    name = found["name"].lower().removesuffix(".") if found else ""
    return name if is_name(name) else None
