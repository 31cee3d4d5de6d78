"""What the kernel tells of connections that have ended: who, where to, how much.

Sources: Linux include/uapi/linux/netfilter/{nfnetlink_conntrack,nf_conntrack_common}.h. Counters and times are there when nf_conntrack_acct and nf_conntrack_timestamp are on.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass

from corral.net.netlink import attributes, messages

DESTROYED = 1 << 8 | 2
"""Message of the subsystem conntrack (1): IPCTNL_MSG_CT_DELETE."""
_TUPLE_ORIGINAL, _STATUS, _MARK, _COUNTERS_ORIGINAL, _COUNTERS_REPLY, _TIMESTAMP = 1, 3, 8, 9, 10, 20
_DESTINATION_CHANGED = 1 << 5
_ANSWERED = 1 << 1


@dataclass(frozen=True, slots=True)
class Ended:
    """A connection (or what the kernel takes for one) as its first packet was. Times in seconds since the epoch."""

    mark: int
    protocol: int
    source: str
    destination: str
    port: int
    """Of the destination; 0 where the protocol has none."""
    sent: int
    received: int
    answered: bool
    diverted: bool
    """Whether it was led elsewhere than where it was sent: to our own resolver or proxy."""
    began: float | None = None
    ended: float | None = None


def decode(data: bytes) -> Iterator[Ended]:
    """Of one read from the socket. What makes no sense is passed over."""
    for kind, _, body in messages(data):
        if kind == DESTROYED and (ended := connection(body)) is not None:
            yield ended


def connection(body: bytes) -> Ended | None:
    """Of one message, also of a list of those that go on; None for what makes no sense."""
    return _ended(dict(attributes(body[4:])))


def _ended(parts: dict[int, bytes]) -> Ended | None:
    original = dict(attributes(parts.get(_TUPLE_ORIGINAL, b"")))
    addresses, protocol = dict(attributes(original.get(1, b""))), dict(attributes(original.get(2, b"")))
    if len(addresses.get(1, b"")) != 4 or len(addresses.get(2, b"")) != 4 or not protocol.get(1):
        return None
    status = _number(parts.get(_STATUS, b""))
    times = dict(attributes(parts.get(_TIMESTAMP, b"")))
    return Ended(
        mark=_number(parts.get(_MARK, b"")),
        protocol=protocol[1][0],
        source=socket.inet_ntoa(addresses[1]),
        destination=socket.inet_ntoa(addresses[2]),
        port=_number(protocol.get(3, b"")),
        sent=_bytes(parts.get(_COUNTERS_ORIGINAL, b"")),
        received=_bytes(parts.get(_COUNTERS_REPLY, b"")),
        answered=bool(status & _ANSWERED),
        diverted=bool(status & _DESTINATION_CHANGED),
        began=_number(times[1]) / 1e9 if 1 in times else None,
        ended=_number(times[2]) / 1e9 if 2 in times else None,
    )


def _bytes(counters: bytes) -> int:
    return _number(dict(attributes(counters)).get(2, b""))


def _number(data: bytes) -> int:
    return int.from_bytes(data, "big")
