"""Heads as they are sent on: what was said to Corral and what concerns one connection only is taken out, what the other side must know is put in. No I/O."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from dataclasses import dataclass

from corral.preview import access, head
from corral.preview.doors import By, Target
from corral.preview.head import Request, Response

HOP = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"proxy-authorization", b"proxy-authenticate", b"te", b"upgrade", b"http2-settings"})
"""Headers of one connection (RFC 9110, 7.6.1)."""
FORWARDED = frozenset({b"forwarded", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"x-forwarded-port", b"x-forwarded-prefix", b"x-real-ip"})
_FRAMING = frozenset({b"content-length", b"transfer-encoding", b"host"})
_ADDRESS = re.compile(rb"(https?)://([^/?#]*)(.*)\Z", re.IGNORECASE)
_DOMAIN = re.compile(rb";[ \t]*domain[ \t]*=[^;]*", re.IGNORECASE)


@dataclass(frozen=True)
class Origin:
    """What the client's connection tells."""

    address: str
    secure: bool


def origin(asked: Request, address: str, *, secure: bool, front: bool) -> Origin:
    """Where a request comes from. `front`: a proxy of this machine stands before us, so what it says of its own client is believed: what it has added last."""
    if not front or not _here(address):
        return Origin(address, secure)
    told = _last(asked, b"x-forwarded-for")
    scheme = _last(asked, b"x-forwarded-proto").lower()
    return Origin(told if _is_address(told) else address, scheme == "https" if scheme in ("http", "https") else secure)


def _last(asked: Request, name: bytes) -> str:
    values = asked.names.get(name, ())
    return values[-1].rpartition(b",")[2].strip().decode("latin-1") if values else ""


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _here(address: str) -> bool:
    return _is_address(address) and ipaddress.ip_address(address).is_loopback


def upgrade_of(asked: Request) -> bytes | None:
    """The protocol the connection may go over to. Not one in which further requests would pass unread, and not behind a body."""
    wanted = asked.upgrade
    return None if wanted in (b"h2c", b"http/2", b"tls/1.0") or asked.chunked or asked.length else wanted


def request(asked: Request, target: Target, origin: Origin, *, own: Collection[bytes], host: str | None) -> bytes:
    """A request's head for a guest. `own`: headers that were meant for Corral; `host`: what it is told as Host instead of the client's."""
    dropped = _dropped(asked) | FORWARDED
    fields: list[tuple[bytes, bytes]] = [(b"Host", (asked.host if host is None else host.encode("latin-1")) or b"localhost")]
    for name, value in asked.fields:
        lower = name.lower()
        if lower in dropped or lower == b"host" or access.is_ours(lower, value, own):
            continue
        if lower != b"cookie":
            fields.append((name, access.without_link_in(value) if lower == b"referer" else value))
        elif target.by is not By.PATH and (kept := access.without_cookie(value)):
            # Where all sandboxes have one origin, cookies are another one's as likely as not.
            fields.append((name, kept))
    fields += [(b"X-Forwarded-For", origin.address.encode()), (b"X-Forwarded-Proto", b"https" if origin.secure else b"http"), (b"X-Forwarded-Host", asked.host)]
    if target.base:
        fields.append((b"X-Forwarded-Prefix", target.base))
    path = asked.path[len(target.base) :] or b"/"
    query = access.without_link(asked.query)
    return head.encode(_line(asked, path if query is None else path + b"?" + query), [*fields, *_connection(asked)])


def to_server(asked: Request, target: Target, origin: Origin) -> bytes:
    """A request's head for Corral's own door: as it came, with the sandbox and the port it is about."""
    dropped = _dropped(asked) | FORWARDED | {b"corral-door"}
    if target.sandbox is not None:
        dropped |= {b"corral-sandbox", b"corral-port"}
    fields = [(name, value) for name, value in asked.fields if name.lower() not in dropped]
    fields += [(b"Corral-Door", (target.door or "").encode()), (b"X-Forwarded-For", origin.address.encode())]
    fields += [(b"X-Forwarded-Proto", b"https" if origin.secure else b"http"), (b"X-Forwarded-Host", asked.host)]
    if target.sandbox is not None:
        fields += [(b"Corral-Sandbox", target.sandbox.encode()), (b"Corral-Port", b"%d" % target.port)]
    return head.encode(_line(asked, asked.target), [*fields, *_connection(asked)])


def response(answer: Response, target: Target, asked: Request, *, host: str | None, secure: bool, persists: bool) -> bytes:
    """A guest's head for the client that has asked. `host`: what the guest was told as Host instead of the client's; `secure`: whether the client speaks TLS."""
    dropped = _dropped(answer) | {b"alt-svc"}
    fields: list[tuple[bytes, bytes]] = []
    for name, value in answer.fields:
        lower = name.lower()
        if lower in dropped or (lower == b"set-cookie" and target.by is By.PATH):
            continue
        if lower == b"set-cookie":
            # Set for the whole domain, it would be sent to the other sandboxes.
            fields.append((name, _DOMAIN.sub(b"", value)))
        elif lower == b"location":
            fields.append((name, _location(value, target.base, asked.host, host, secure=secure)))
        else:
            fields.append((name, value))
    if target.by is By.PATH:
        # A page gets an origin of its own, so that it can't speak for its reader with the other sandboxes.
        fields.append((b"Content-Security-Policy", b"sandbox allow-scripts allow-forms allow-popups allow-modals allow-downloads"))
    if answer.status == 101:
        fields += [(b"Connection", b"Upgrade"), *((b"Upgrade", value) for value in answer.names.get(b"upgrade", ()))]
    elif answer.status >= 200 and (not persists or asked.minor == 0):
        fields.append((b"Connection", b"keep-alive" if persists else b"close"))
    return head.encode(b"HTTP/1.1 %d %s" % (answer.status, answer.reason), fields)


def _location(value: bytes, base: bytes, outside: bytes, host: str | None, *, secure: bool) -> bytes:
    """Where a guest sends a client, as the client gets there: what the guest takes for itself is `outside`, below `base`."""
    if value.startswith(b"/") and not value.startswith(b"//"):
        return _below(base, value)
    found = _ADDRESS.match(value)
    if found is None or _plain(found[1], found[2]) not in {_plain(found[1], name) for name in (outside, *([] if host is None else [host.encode("latin-1")]))}:
        return value
    scheme = b"https" if secure else b"http" if host is not None else found[1]
    return scheme + b"://" + outside + _below(base, found[3])


def _below(base: bytes, path: bytes) -> bytes:
    """A guest may know what it is below, from X-Forwarded-Prefix."""
    return path if base and (path == base or path.startswith(base + b"/")) else base + path


def _plain(scheme: bytes, authority: bytes) -> bytes:
    """Without the port that the scheme means."""
    return authority.lower().removesuffix(b":443" if scheme.lower() == b"https" else b":80")


def from_server(answer: Response, *, minor: int, persists: bool) -> bytes:
    """The head of Corral's own answer."""
    dropped = _dropped(answer)
    fields = [(name, value) for name, value in answer.fields if name.lower() not in dropped]
    if answer.status == 101:
        fields += [(b"Connection", b"Upgrade"), *((b"Upgrade", value) for value in answer.names.get(b"upgrade", ()))]
    elif answer.status >= 200 and (not persists or minor == 0):
        fields.append((b"Connection", b"keep-alive" if persists else b"close"))
    return head.encode(b"HTTP/1.1 %d %s" % (answer.status, answer.reason), fields)


def _dropped(message: head.Head) -> frozenset[bytes] | set[bytes]:
    named = message.tokens(b"connection")
    return (HOP | set(named)) - _FRAMING if named else HOP


def _line(asked: Request, target: bytes) -> bytes:
    return b"%s %s HTTP/1.%d" % (asked.method, target, asked.minor)


def _connection(asked: Request) -> list[tuple[bytes, bytes]]:
    if (upgrade := upgrade_of(asked)) is not None:
        return [(b"Connection", b"Upgrade"), (b"Upgrade", upgrade)]
    trailers = [(b"TE", b"trailers")] if b"trailers" in asked.tokens(b"te") else []
    if asked.minor == 0:
        return trailers
    return [*trailers, (b"Connection", b"TE")] if trailers else []
