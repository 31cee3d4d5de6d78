"""DNS messages (RFC 1035, EDNS of RFC 6891, extended errors of RFC 8914), as much of them as our resolver speaks. Pure; every length is checked."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

HEADER: Final = 12
RECORDS = 256
"""Records of an answer that are looked at."""
HOPS = 16
"""CNAMEs that are followed, and pointers within one name."""
_LABEL = re.compile(rb"[A-Za-z0-9_-]{1,63}\Z")
_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\Z")


class Type(IntEnum):
    A = 1
    NS = 2
    CNAME = 5
    SOA = 6
    PTR = 12
    MX = 15
    TXT = 16
    AAAA = 28
    SRV = 33
    OPT = 41
    CAA = 257


class Code(IntEnum):
    NOERROR = 0
    FORMERR = 1
    SERVFAIL = 2
    NXDOMAIN = 3
    NOTIMP = 4
    REFUSED = 5


class Ede(IntEnum):
    """Extended errors (RFC 8914)."""

    BLOCKED = 15
    PROHIBITED = 18
    NO_REACHABLE_AUTHORITY = 22


def is_name(text: str) -> bool:
    """Whether it is a name as rules know them: lower case, no empty label (which would end the name on the wire, and make it another), no last dot."""
    return _NAME.match(text) is not None


class MalformedError(ValueError):
    """Not a message that we understand."""


@dataclass(frozen=True, slots=True)
class Query:
    """One question."""

    id: int
    name: str
    """Lower case, without the last dot."""
    type: int
    question: bytes
    """As it was written, to be repeated in the answer."""
    desired: bool
    """Whether recursion was desired; repeated too."""
    payload: int
    """Bytes that the asker takes by UDP."""
    edns: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """What a resolver told."""

    code: int
    truncated: bool
    addresses: tuple[str, ...]
    aliases: tuple[str, ...]
    """Names that the asked one leads to by CNAME, in their order."""
    ttl: int
    """Seconds: the least of the records used, or of the SOA when there are none."""


def parse_query(data: bytes) -> Query:
    """Raises `MalformedError`."""
    if len(data) < HEADER:
        raise MalformedError("shorter than a header")
    flags = int.from_bytes(data[2:4])
    if flags & 0x8000 or (flags >> 11) & 15:
        raise MalformedError("not a standard query")
    if data[4:10] != b"\0\1\0\0\0\0":
        raise MalformedError("not exactly one question")
    at = HEADER
    name: list[bytes] = []
    while True:
        length = data[at] if at < len(data) else 255
        if length == 0:
            break
        label = data[at + 1 : at + 1 + length]
        if length > 63 or not _LABEL.match(label) or len(label) != length:
            raise MalformedError("a label that no host has")
        name.append(label)
        at += 1 + length
    if at - HEADER > 254 or not name or len(data) < at + 5:
        raise MalformedError("a name too long, or cut short")
    end = at + 5
    if data[at + 3 : end] != b"\0\1":
        raise MalformedError("not about the internet")
    edns, payload = _edns(data, end)
    return Query(
        int.from_bytes(data[:2]), b".".join(name).decode().lower(), int.from_bytes(data[at + 1 : at + 3]), data[HEADER:end], bool(flags & 0x100), payload, edns
    )


def _edns(data: bytes, at: int) -> tuple[bool, int]:
    if int.from_bytes(data[10:12]) >= 1 and data[at : at + 3] == b"\0\0\x29" and len(data) >= at + 11:
        return True, min(max(int.from_bytes(data[at + 3 : at + 5]), 512), 4096)
    return False, 512


def reply(query: Query, code: Code = Code.NOERROR, *, addresses: tuple[str, ...] = (), ttl: int = 0, why: tuple[Ede, str] | None = None, udp: bool) -> bytes:
    """An answer to it, with A records of the asked name; by UDP without records and marked as cut when it would be too long."""
    records = b"".join(b"\xc0\x0c\0\1\0\1" + ttl.to_bytes(4) + b"\0\4" + ipaddress.IPv4Address(address).packed for address in addresses)
    extra = b""
    if query.edns:
        option = b""
        if why is not None:
            text = why[1].encode()[:200]
            option = b"\0\x0f" + (2 + len(text)).to_bytes(2) + why[0].to_bytes(2) + text
        extra = b"\0\0\x29\x04\xd0\0\0\0\0" + len(option).to_bytes(2) + option
    count, flags = len(addresses), 0x8080 | code | (0x100 if query.desired else 0)
    if udp and HEADER + len(query.question) + len(records) + len(extra) > query.payload:
        count, records, flags = 0, b"", flags | 0x200
    return b"".join(
        (query.id.to_bytes(2), flags.to_bytes(2), b"\0\1", count.to_bytes(2), b"\0\0", (1 if extra else 0).to_bytes(2), query.question, records, extra)
    )


def refusal(data: bytes, code: Code) -> bytes | None:
    """An answer to something that is no query we understand, or None when it is not even a header."""
    if len(data) < HEADER or data[2] & 0x80:
        return None
    return data[:2] + (0x8080 | code).to_bytes(2) + bytes(8)


def question(id: int, name: str, type: int) -> bytes:
    """A query of ours, with EDNS, so that answers come whole. Raises `MalformedError` for what is no name."""
    if not is_name(name):
        raise MalformedError(f"{name[:100]!r} is no name")
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return id.to_bytes(2) + b"\x01\0\0\1\0\0\0\0\0\1" + labels + b"\0" + type.to_bytes(2) + b"\0\1" + b"\0\0\x29\x04\xd0\0\0\0\0\0\0"


def parse_answer(data: bytes, asked: bytes) -> Answer:
    """The answer to our own `question`; addresses at the end of the chain of CNAMEs that begins with the asked name. Raises `MalformedError`."""
    end = len(asked) - 11
    if len(data) < end or data[:2] != asked[:2] or not data[2] & 0x80 or data[4:6] != b"\0\1" or data[HEADER:end].lower() != asked[HEADER:end].lower():
        raise MalformedError("not the answer to this question")
    code, truncated = data[3] & 15, bool(data[2] & 2)
    start, _ = _name(data, HEADER)
    addresses: dict[bytes, list[str]] = {}
    aliases: dict[bytes, bytes] = {}
    ttls: dict[bytes, int] = {}
    negative: int | None = None
    at = end
    for _ in range(min(int.from_bytes(data[6:8]) + int.from_bytes(data[8:10]), RECORDS)):
        owner, at = _name(data, at)
        if len(data) < at + 10:
            raise MalformedError("a record cut short")
        type, kind, ttl, length = (
            int.from_bytes(data[at : at + 2]),
            data[at + 2 : at + 4],
            int.from_bytes(data[at + 4 : at + 8]),
            int.from_bytes(data[at + 8 : at + 10]),
        )
        at += 10
        if len(data) < at + length:
            raise MalformedError("a record cut short")
        if kind == b"\0\1" and type == Type.A and length == 4:
            addresses.setdefault(owner, []).append(str(ipaddress.IPv4Address(data[at : at + 4])))
            ttls[owner] = min(ttl, ttls.get(owner, ttl))
        elif kind == b"\0\1" and type == Type.CNAME:
            aliases[owner], _ = _name(data, at)
            ttls[owner] = ttl
        elif type == Type.SOA:
            negative = ttl
        at += length
    chain: list[str] = []
    owner, ttl = start, [ttls[start]] if start in ttls else []
    for _ in range(HOPS):
        if owner not in aliases:
            break
        owner = aliases[owner]
        chain.append(_text(owner))
        ttl += [ttls[owner]] if owner in ttls else []
    found = tuple(addresses.get(owner, ()))
    return Answer(code, truncated, found, tuple(chain), min(ttl) if found and ttl else negative or 0)


def _text(name: bytes) -> str:
    """A name in wire form as rules know it (what no host has is not like any of theirs)."""
    labels: list[str] = []
    at = 0
    while at < len(name) and name[at]:
        labels.append(name[at + 1 : at + 1 + name[at]].decode("latin-1"))
        at += 1 + name[at]
    return ".".join(labels)


def _name(data: bytes, at: int) -> tuple[bytes, int]:
    """A name in wire form and lower case, and where it ends."""
    labels: list[bytes] = []
    end: int | None = None
    length = hops = 0
    while True:
        if at >= len(data):
            raise MalformedError("a name cut short")
        size = data[at]
        if size >= 0xC0:
            if at + 1 >= len(data) or hops == HOPS:
                raise MalformedError("a name that leads nowhere")
            end = at + 2 if end is None else end
            at = int.from_bytes(data[at : at + 2]) & 0x3FFF
            hops += 1
            continue
        if size > 63:
            raise MalformedError("a label of an unknown kind")
        length += size + 1
        if length > 255 or at + 1 + size > len(data):
            raise MalformedError("a name too long, or cut short")
        labels.append(data[at : at + 1 + size].lower())
        at += 1 + size
        if size == 0:
            return b"".join(labels), at if end is None else end
