"""Heads of HTTP/1.1 messages (RFC 9112), read strictly: whatever two programs might read differently is refused. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

SIZE: Final = 64 << 10
"""Bytes of a head at most."""
TARGET: Final = 16 << 10
"""Bytes of a request's target at most."""
FIELDS: Final = 256
"""Headers of a head at most."""
END: Final = b"\r\n\r\n"

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_VALUE = rb"[\x21-\x7e\x80-\xff](?:[\x20\x09\x21-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?"
_REQUEST = re.compile(rb"(" + _TOKEN + rb") ([\x21-\x7e\x80-\xff]+) HTTP/1\.([01])\Z")
_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: ([\x20\x09\x21-\x7e\x80-\xff]*))?\Z")
_FIELD = re.compile(rb"(" + _TOKEN + rb"):[ \t]*(" + _VALUE + rb")?[ \t]*\Z")
_LENGTH = re.compile(rb"[0-9]{1,18}\Z")

Fields = tuple[tuple[bytes, bytes], ...]
"""Names as they were written, and values."""


class BadHead(Exception):
    """A head that is answered with `status` and never sent on. `code` is a word for programs."""

    def __init__(self, status: int, message: str, *, code: str = "bad_request") -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@dataclass(frozen=True)
class Head:
    """What requests and responses have in common. `names` are the headers by name in lower case, the values of a repeated one in order."""

    minor: int
    fields: Fields
    names: Mapping[bytes, tuple[bytes, ...]]

    def one(self, name: bytes) -> bytes | None:
        """The value of a header that is there once; the first of several."""
        values = self.names.get(name)
        return values[0] if values else None

    def tokens(self, name: bytes) -> list[bytes]:
        """The comma-separated words of a header, in lower case."""
        return [word.strip().lower() for value in self.names.get(name, ()) for word in value.split(b",") if word.strip()]

    @property
    def chunked(self) -> bool:
        return b"transfer-encoding" in self.names

    @property
    def length(self) -> int | None:
        value = self.one(b"content-length")
        return None if value is None else int(value)


@dataclass(frozen=True)
class Request(Head):
    """`path` and `query` are the target's parts; a target in absolute form has been taken apart, and its authority must be that of the Host."""

    method: bytes
    path: bytes
    query: bytes | None
    host: bytes

    @property
    def upgrade(self) -> bytes | None:
        """The protocol that the client wants to go over to, in lower case."""
        if self.minor == 0 or b"upgrade" not in self.tokens(b"connection"):
            return None
        wanted = self.tokens(b"upgrade")
        return wanted[0] if wanted else None

    @property
    def persistent(self) -> bool:
        """Whether another request may follow on the connection."""
        words = self.tokens(b"connection")
        return b"close" not in words if self.minor else b"keep-alive" in words

    @property
    def target(self) -> bytes:
        return self.path if self.query is None else self.path + b"?" + self.query


@dataclass(frozen=True)
class Response(Head):
    status: int
    reason: bytes

    @property
    def persistent(self) -> bool:
        words = self.tokens(b"connection")
        return b"close" not in words if self.minor else b"keep-alive" in words

    def bare(self, method: bytes) -> bool:
        """Whether an answer to a request of this method has no body (RFC 9112, 6.3)."""
        return method == b"HEAD" or self.status in (204, 304) or 100 <= self.status < 200


def request(raw: bytes) -> Request:
    """A request's head, with the empty line at its end. Raises `BadHead`."""
    line, *lines = _lines(raw)
    found = _REQUEST.match(line)
    if line == b"PRI * HTTP/2.0":
        raise BadHead(400, "HTTP/2 is not spoken here: use HTTP/1.1, or a tunnel")
    if found is None:
        raise BadHead(400, "the request line is malformed")
    method, target, minor = found[1], found[2], int(found[3])
    if len(target) > TARGET:
        raise BadHead(414, f"the target has more than {TARGET >> 10} KiB", code="target_too_long")
    if method in (b"CONNECT", b"TRACE", b"TRACK"):
        raise BadHead(405, f"{method.decode()} is not passed on", code="method_not_allowed")
    fields = _fields(lines)
    names = _names(fields)
    _check_framing(names, minor)
    hosts = names.get(b"host", ())
    if len(hosts) > 1 or (not hosts and minor):
        raise BadHead(400, "the request needs exactly one Host header")
    host = hosts[0] if hosts else b""
    path, query = _target(method, target, host)
    return Request(minor, fields, names, method, path, query, host)


def response(raw: bytes) -> Response:
    """A response's head. Raises `BadHead`; its status then is the one to tell the client."""
    try:
        line, *lines = _lines(raw)
        found = _STATUS.match(line)
        if found is None:
            raise BadHead(502, "the status line is malformed")
        fields = _fields(lines)
        names = _names(fields)
        _check_framing(names, int(found[1]))
    except BadHead as error:
        raise BadHead(502, error.message, code="bad_gateway") from None
    return Response(int(found[1]), fields, names, int(found[2]), found[3] or b"")


def encode(line: bytes, fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"\r\n".join([line, *(name + b": " + value for name, value in fields), b"", b""])


def _lines(raw: bytes) -> list[bytes]:
    if not raw.endswith(END):
        raise BadHead(400, "the head has no end")
    lines = raw[: -len(END)].split(b"\r\n")
    if any(b"\n" in line or b"\r" in line or b"\0" in line for line in lines):
        raise BadHead(400, "a line of the head does not end with CR LF")
    if len(lines) > FIELDS + 1:
        raise BadHead(431, f"the head has more than {FIELDS} fields", code="head_too_large")
    return lines


def _fields(lines: list[bytes]) -> Fields:
    fields: list[tuple[bytes, bytes]] = []
    for line in lines:
        found = _FIELD.match(line)
        if found is None:
            what = "is folded" if line[:1] in b" \t" else "is malformed"
            raise BadHead(400, f"a header {what}")
        fields.append((found[1], found[2] or b""))
    return tuple(fields)


def _names(fields: Fields) -> dict[bytes, tuple[bytes, ...]]:
    names: dict[bytes, tuple[bytes, ...]] = {}
    for name, value in fields:
        lower = name.lower()
        names[lower] = (*names.get(lower, ()), value)
    return names


def _check_framing(names: Mapping[bytes, tuple[bytes, ...]], minor: int) -> None:
    """One length, told in one way."""
    lengths, codings = names.get(b"content-length", ()), names.get(b"transfer-encoding", ())
    if len(lengths) + len(codings) > 1:
        raise BadHead(400, "the message tells its length more than once")
    if lengths and _LENGTH.match(lengths[0]) is None:
        raise BadHead(400, "the Content-Length is no number")
    if codings and (codings[0].lower() != b"chunked" or minor == 0):
        raise BadHead(501, "the only Transfer-Encoding that is taken is chunked, in HTTP/1.1", code="not_implemented")


def _target(method: bytes, target: bytes, host: bytes) -> tuple[bytes, bytes | None]:
    if target == b"*":
        if method != b"OPTIONS":
            raise BadHead(400, "the target is malformed")
        return target, None
    if not target.startswith(b"/"):
        scheme, colon, rest = target.partition(b"://")
        if not colon or scheme.lower() not in (b"http", b"https"):
            raise BadHead(400, "the target must be a path")
        cut = min((at for at in (rest.find(b"/"), rest.find(b"?")) if at >= 0), default=len(rest))
        if rest[:cut].lower() != host.lower():
            raise BadHead(400, "the target and the Host name different servers")
        target = rest[cut:]
        target = target if target.startswith(b"/") else b"/" + target
    if b"#" in target:
        raise BadHead(400, "the target has a fragment")
    path, mark, query = target.partition(b"?")
    return path, query if mark else None
