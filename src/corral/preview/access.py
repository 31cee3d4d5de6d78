"""Who may see a port: API keys, a sandbox's preview token, signed links and the cookies they become. No I/O.

A signature is an HMAC of sandbox, port, path prefix and time of expiry under the sandbox's preview token: rotating the token ends every link and cookie.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from urllib.parse import quote, unquote_to_bytes

from corral.preview.doors import By, Target
from corral.preview.head import Request

COOKIE = b"corral_preview"
SIGNATURE, EXPIRES, PATH = b"corral_signature", b"corral_expires", b"corral_path"
LINK = frozenset({SIGNATURE, EXPIRES, PATH})
START = "pt_"
"""How every preview token begins."""
_KEY = re.compile(rb"ck_[0-9a-f]{40}\Z")
_COOKIE_VALUE = re.compile(rb"([0-9]{1,12})\.([A-Za-z0-9_-]{0,4096})\.([A-Za-z0-9_-]{43})\Z")
_DECIMAL = re.compile(rb"[0-9]{1,12}\Z")
_COOKIE_PATH = re.compile(rb"/[A-Za-z0-9/_.~!$&'()*+=:@%-]{0,1000}\Z")
"""What can be said to a browser as a cookie's path."""
_UNCLEAR = re.compile(rb"%2e|%2f|%5c|\\|//|/\.{1,2}(?:/|\Z)", re.IGNORECASE)
"""What a server behind us may read as another path than we do."""
SAFE = frozenset({b"GET", b"HEAD", b"OPTIONS"})
EVERY = 0
"""In place of a port in `hosts`: of all that have none of their own."""


@dataclass(frozen=True)
class Settings:
    """What is kept of a sandbox's previews. `public` ports need nothing. `hosts`: what a port's server is told as Host instead of the client's."""

    token: str
    public: frozenset[int] = frozenset()
    hosts: Mapping[int, str] = field(default_factory=dict[int, str])
    every: bool = False
    """All ports are public."""
    only: frozenset[int] | None = None
    """No other ports are shown to anybody; None: any may be."""
    forbids: bool = False
    """Who gives nothing is told that it is forbidden (403) in place of that something is to be given (401): what clients of a facade expect."""

    def shows(self, port: int) -> bool:
        return self.only is None or port in self.only

    def host(self, port: int) -> str | None:
        return host_of(self.hosts, port)


def host_of(hosts: Mapping[int, str], port: int) -> str | None:
    """What a port's server is told as Host; None: what the client said. `${PORT}` in it is the port."""
    host = hosts.get(port, hosts.get(EVERY))
    return None if host is None else host.replace("${PORT}", str(port))


@dataclass(frozen=True)
class Signed:
    """A link's or cookie's claim. `expires`: seconds since 1970."""

    path: bytes
    expires: int
    signature: bytes


@dataclass(frozen=True)
class Credentials:
    """What a request has brought, not yet believed."""

    key: str | None
    token: str | None
    link: Signed | None
    cookies: tuple[Signed, ...]
    """A page of another sandbox can set some for the whole domain beside the one that is ours: any one good is enough."""


class Verdict(Enum):
    """`CHECK_KEY`: it depends on the key that was given. `TO_COOKIE`: a good link, to be kept as a cookie and taken out of the address."""

    ALLOWED = auto()
    CHECK_KEY = auto()
    TO_COOKIE = auto()
    NOTHING_GIVEN = auto()
    WRONG = auto()
    EXPIRED = auto()
    OTHER_PATH = auto()
    OTHER_PAGE = auto()


def new_token() -> str:
    return START + secrets.token_hex(20)


def sign(token: str, sandbox: str, port: int, path: bytes, expires: int) -> bytes:
    text = b"\n".join([b"preview", sandbox.encode(), b"%d" % port, b"%d" % expires, path])
    return base64.urlsafe_b64encode(hmac.digest(token.encode(), text, hashlib.sha256)).rstrip(b"=")


def link_query(token: str, sandbox: str, port: int, path: str, expires: int) -> str:
    """What is put behind the question mark of a signed link."""
    signature = sign(token, sandbox, port, path.encode(), expires).decode()
    fields = [f"{EXPIRES.decode()}={expires}"]
    if path != "/":
        fields.append(f"{PATH.decode()}={quote(path)}")
    return "&".join([*fields, f"{SIGNATURE.decode()}={signature}"])


def credentials(head: Request, token_headers: Sequence[bytes], by: By) -> Credentials:
    """Cookies count only where an origin is a sandbox's own."""
    key = head.one(b"corral-key") or _bearer(head)
    token = next((value for name in token_headers if (value := head.one(name)) is not None), None)
    return Credentials(
        key=None if key is None else key.decode("latin-1"),
        token=None if token is None else token.decode("latin-1"),
        link=_link(head.query),
        cookies=tuple(_cookies(head)) if by is By.HOST else (),
    )


def _bearer(head: Request) -> bytes | None:
    """A key of ours in the Authorization header; others' credentials there are the guest's business."""
    scheme, _, value = (head.one(b"authorization") or b"").partition(b" ")
    return value.strip() if scheme.lower() == b"bearer" and _KEY.match(value.strip()) else None


def _link(query: bytes | None) -> Signed | None:
    given: dict[bytes, bytes] = {}
    for part in (query or b"").split(b"&"):
        name, _, value = part.partition(b"=")
        if name in LINK:
            given[name] = unquote_to_bytes(value)
    if SIGNATURE not in given or _DECIMAL.match(given.get(EXPIRES, b"")) is None:
        return None
    return Signed(given.get(PATH, b"/"), int(given[EXPIRES]), given[SIGNATURE])


def _cookies(head: Request) -> Iterator[Signed]:
    for value in head.names.get(b"cookie", ()):
        for part in value.split(b";"):
            name, _, text = part.strip().partition(b"=")
            if name == COOKIE and (found := _COOKIE_VALUE.match(text)):
                with suppress(ValueError):
                    yield Signed(base64.urlsafe_b64decode(found[2] + b"=" * (-len(found[2]) % 4)), int(found[1]), found[3])


def cookie(signed: Signed, *, secure: bool, now: float) -> bytes:
    """The Set-Cookie header that keeps a link on its host. Without a Domain: no other host gets it. With the link's path, so that a browser keeps those of several links."""
    path, at = base64.urlsafe_b64encode(signed.path).rstrip(b"="), signed.path.rstrip(b"/") or b"/"
    fields = [
        COOKIE + b"=%d." % signed.expires + path + b"." + signed.signature,
        b"Path=" + (at if _COOKIE_PATH.match(at) else b"/"),
        b"Max-Age=%d" % max(0, signed.expires - int(now)),
        b"HttpOnly",
        b"SameSite=Lax",
    ]
    return b"; ".join([*fields, b"Secure"] if secure else fields)


def decide(given: Credentials, settings: Settings, target: Target, head: Request, *, now: float) -> Verdict:
    """Any one good credential is enough. A key is believed last, since asking for it costs a round trip. What changes the sandbox, as a name served from outside does, takes a key."""
    if target.name is not None:
        return Verdict.CHECK_KEY if given.key is not None else Verdict.NOTHING_GIVEN
    path = head.path[len(target.base) :] or b"/"
    linked = None if given.link is None else _judge(given.link, settings, target, path, now=now)
    if linked is Verdict.ALLOWED:
        # Before all else, so that its page never reads a signature in its own address.
        keeps = target.by is By.HOST and head.method == b"GET" and head.upgrade is None
        return Verdict.TO_COOKIE if keeps else Verdict.ALLOWED
    if (settings.every or target.port in settings.public) and not target.tunnel:
        return Verdict.ALLOWED
    verdict = Verdict.NOTHING_GIVEN
    if given.token is not None:
        if hmac.compare_digest(given.token.encode("latin-1"), settings.token.encode()):
            return Verdict.ALLOWED
        verdict = Verdict.WRONG
    if given.cookies:
        judged = {_judge(cookie, settings, target, path, now=now) for cookie in given.cookies}
        verdict = next((each for each in (Verdict.ALLOWED, Verdict.EXPIRED, Verdict.OTHER_PATH) if each in judged), Verdict.WRONG)
        if verdict is Verdict.ALLOWED:
            verdict = Verdict.ALLOWED if _from_own_page(head) else Verdict.OTHER_PAGE
        if verdict is Verdict.ALLOWED:
            return verdict
    if linked is not None:
        verdict = linked
    return Verdict.CHECK_KEY if given.key is not None else verdict


def _judge(signed: Signed, settings: Settings, target: Target, path: bytes, *, now: float) -> Verdict:
    wanted = sign(settings.token, target.sandbox or "", target.port, signed.path, signed.expires)
    if not hmac.compare_digest(wanted, signed.signature):
        return Verdict.WRONG
    if signed.expires <= now:
        return Verdict.EXPIRED
    return Verdict.ALLOWED if beneath(path, signed.path) and not target.tunnel else Verdict.OTHER_PATH


def beneath(path: bytes, prefix: bytes) -> bool:
    """Whether a path is the prefix or below it, for every server that may read it."""
    prefix = prefix.rstrip(b"/")
    if not prefix:
        return True
    return _UNCLEAR.search(path) is None and (path == prefix or path.startswith(prefix + b"/"))


def _from_own_page(head: Request) -> bool:
    """Whether a browser that sent a cookie did so for a page of this very host, or because a person went there. Pages of other sandboxes count as the same site."""
    origin = head.one(b"origin")
    if origin is not None and (head.method not in SAFE or head.upgrade is not None):
        return origin.partition(b"://")[2].lower() == head.host.lower()
    site = head.one(b"sec-fetch-site")
    return site in (None, b"same-origin", b"none") or (head.one(b"sec-fetch-mode") == b"navigate" and head.method in SAFE)


def without_link(query: bytes | None) -> bytes | None:
    """The query as the guest gets it."""
    if query is None or not any(name in query for name in LINK):
        return query
    kept = [part for part in query.split(b"&") if part.partition(b"=")[0] not in LINK]
    return b"&".join(kept) if kept else None


def without_link_in(address: bytes) -> bytes:
    """An address, as of a page that a request comes from, as the guest gets it."""
    base, mark, query = address.partition(b"?")
    kept = without_link(query) if mark else None
    return base if kept is None else base + mark + kept


def without_cookie(value: bytes) -> bytes:
    """A Cookie header as the guest gets it; empty when nothing is left."""
    if COOKIE not in value:
        return value
    return b"; ".join(part.strip() for part in value.split(b";") if part.strip() and part.strip().partition(b"=")[0] != COOKIE)


def is_ours(name: bytes, value: bytes, own: Collection[bytes]) -> bool:
    """Whether a header is said to Corral, and not to the guest."""
    if name in own:
        return True
    return name == b"authorization" and value[:7].lower() == b"bearer " and _KEY.match(value[7:].strip()) is not None
