"""What the kernel tells of packets that a rule has logged: the first bytes of each.

Source: Linux include/uapi/linux/netfilter/nfnetlink_log.h.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from corral.net.netlink import ACK, Message, attribute, attributes, messages

PACKET = 4 << 8
"""Message of the subsystem nflog (4): NFULNL_MSG_PACKET."""
_CONFIGURE = 4 << 8 | 1
_COMMAND, _MODE, _BIND, _COPY_PACKET = 1, 2, 1, 2
_MARK, _PAYLOAD = 2, 9
_WITH_PORTS = (socket.IPPROTO_TCP, socket.IPPROTO_UDP)


@dataclass(frozen=True, slots=True)
class Logged:
    """An IPv4 packet. `mark`: the generation of its sandbox's policy, 0 when it had none."""

    mark: int
    protocol: int
    source: str
    destination: str
    port: int
    """Of the destination; 0 where the protocol has none."""


def subscribe(group: int, *, snapshot: int = 64) -> list[Message]:
    """Requests after which a socket gets what is logged to a group; there can be only one such socket."""
    header = struct.pack(">BBH", socket.AF_UNSPEC, 0, group)
    return [
        Message(_CONFIGURE, header + attribute(_COMMAND, bytes([_BIND])), ACK),
        Message(_CONFIGURE, header + attribute(_MODE, struct.pack(">IBB", snapshot, _COPY_PACKET, 0)), ACK),
    ]


def decode(data: bytes) -> Iterator[Logged]:
    """Of one read from the socket. What is no whole IPv4 header is passed over."""
    for kind, _, body in messages(data):
        if kind == PACKET:
            parts = dict(attributes(body[4:]))
            if (logged := _logged(int.from_bytes(parts.get(_MARK, b""), "big"), parts.get(_PAYLOAD, b""))) is not None:
                yield logged


def _logged(mark: int, packet: bytes) -> Logged | None:
    if len(packet) < 20 or packet[0] >> 4 != 4:
        return None
    header, protocol = (packet[0] & 15) * 4, packet[9]
    port = int.from_bytes(packet[header + 2 : header + 4], "big") if protocol in _WITH_PORTS else 0
    return Logged(mark, protocol, socket.inet_ntoa(packet[12:16]), socket.inet_ntoa(packet[16:20]), port)
