"""The first flight of a TLS client (RFC 8446, 4.1.2): which server it names. Pure; every length is checked."""

from __future__ import annotations

from dataclasses import dataclass

from corral.net.dns import is_name

HELLO = 64 << 10
"""Bytes of a hello at most, records' headers included. Browsers send 2 KiB."""
HANDSHAKE = 22


class NotTlsError(ValueError):
    """These bytes begin no TLS handshake that we understand."""


@dataclass(frozen=True, slots=True)
class Hello:
    """What is told in the clear."""

    name: str | None
    """Lower case. With Encrypted Client Hello: the outer one."""
    protocols: tuple[str, ...]
    """ALPN."""


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise NotTlsError("a field is longer than what holds it")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def field(self, size: int) -> _Reader:
        """What follows its own length."""
        return _Reader(self.take(self.number(size)))


def parse(data: bytes) -> Hello | int:
    """The hello, or how many bytes are needed (at least) to know more. Raises `NotTlsError`."""
    message = bytearray()
    at = 0
    while True:
        if data[at : at + 1] not in (b"\x16", b"") or data[at + 1 : at + 2] not in (b"\3", b""):
            raise NotTlsError("not a handshake record")
        if len(data) < at + 5:
            return at + 5
        length = int.from_bytes(data[at + 3 : at + 5])
        # Of a record that is not whole the beginning counts already; empty ones would go on for ever.
        if not 0 < length <= 16_640:
            raise NotTlsError("a record of an impossible length")
        if len(data) < at + 5 + length:
            if at + 5 + length > HELLO:
                raise NotTlsError("a hello too long")
            return at + 5 + length
        message += data[at + 5 : at + 5 + length]
        at += 5 + length
        if message[0] != 1:
            raise NotTlsError("not a hello")
        if len(message) >= 4:
            size = int.from_bytes(message[1:4])
            if size > HELLO:
                raise NotTlsError("a hello too long")
            if len(message) >= 4 + size:
                return _hello(_Reader(bytes(message[4 : 4 + size])))


def _hello(body: _Reader) -> Hello:
    body.take(34)
    body.field(1)
    body.field(2)
    body.field(1)
    name: str | None = None
    protocols: tuple[str, ...] = ()
    seen: set[int] = set()
    extensions = body.field(2) if body.left else _Reader(b"")
    while extensions.left:
        kind, extension = extensions.number(2), extensions.field(2)
        if kind in seen:
            raise NotTlsError("an extension twice")
        seen.add(kind)
        if kind == 0:
            name = _server_name(extension)
        elif kind == 16:
            entries = extension.field(2)
            listed: list[str] = []
            while entries.left:
                listed.append(entries.field(1).data.decode("latin-1"))
            protocols = tuple(listed)
    return Hello(name, protocols)


def _server_name(extension: _Reader) -> str:
    entries = extension.field(2)
    kind, name = entries.number(1), entries.field(2).data
    if kind != 0 or entries.left or extension.left:
        raise NotTlsError("not exactly one server name")
    text = name.decode("latin-1").lower().removesuffix(".")
    if not is_name(text):
        raise NotTlsError("a server name that no host has")
    return text
