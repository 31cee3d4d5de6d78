"""Elements of the sets in a switch's table (the table itself: `corral.node.nft`). Every field of a key that has several fills a multiple of four bytes."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from corral.net.nfnetlink import Change, Element, Tables, counter, quota
from corral.net.policy import Kernel, Mode, Nat
from corral.net.ranges import LAST_PORT, Box, Protocol
from corral.schema.egress import Budget

SLOT, GENERATION, LIVE, SENT, RECEIVED, BUDGET, CEILING = "slot", "gen", "live", "sent", "received", "budget", "ceiling"
CAPTURED, LED, MODE, ALLOW, DENY = "captured", "led", "mode", "allow", "deny"
PIN, PIN_ANY, PIN_RANGE = "pin", "pin_any", "pin_range"
NEW_RATE, LOG_RATE = "newrate", "lograte"
HOST = "host"
OF_POLICY = (GENERATION, LIVE, CAPTURED, LED, MODE, ALLOW, DENY)
"""Sets with elements that change with a sandbox's policy."""
OF_SANDBOX = (SENT, RECEIVED, BUDGET, CEILING)
"""Sets with elements that have a state, and keep it when the policy changes."""
OF_PACKETS = (NEW_RATE, LOG_RATE)
"""Sets to which packets add elements, of the interface that they came by; the `ceilings` too."""
CANARY = 1
"""A generation that no sandbox has. Its element in ALLOW shows in which byte order the `nft` that has loaded the table compares numbers in sets of ranges."""
DNS_PORT = 53
OPEN_CONNECTIONS = 1000
"""What a sandbox may have open at once, unless its budget says otherwise."""
CEILINGS = "over_"
"""How the names of the chains of `corral.net.ceilings`, and of their sets, begin."""


@dataclass(frozen=True)
class Switchboard:
    """How elements are made for one table."""

    big_endian: bool

    @classmethod
    def of(cls, tables: Tables) -> Switchboard:
        return cls(any(element.key[:4] == CANARY.to_bytes(4, "big") for element, _ in tables.elements(ALLOW)))

    def policy(self, interface: str, generation: int, kernel: Kernel) -> list[Change]:
        """What opens a slot for one generation. Nothing of it matters once the slot has another."""
        if kernel.closed:
            return []
        number, name = _native(generation), _name(interface)
        modes = {Mode.OPEN: "m_open", Mode.NAMES: "m_names"}
        captured = list(self._captured(generation, kernel.nat))
        return [
            Change(CAPTURED, captured),
            Change(LED, [Element(element.key, element.end) for element in captured]),
            Change(MODE, [Element(number, chain=modes[kernel.mode])] if kernel.mode in modes else []),
            Change(ALLOW, [self._box(generation, box) for box in kernel.allow]),
            Change(DENY, [self._box(generation, box) for box in kernel.deny]),
            Change(LIVE, [Element(name + number)]),
            Change(GENERATION, [Element(name, data=number)]),
        ]

    def pin(self, generation: int, protocol: Protocol, address: str, low: int, high: int, *, timeout: float) -> Change:
        """Let the sandbox of a generation open connections to an address that a name it may reach has been resolved to, for `timeout` seconds."""
        if (low, high) == (0, LAST_PORT):
            return Change(PIN_ANY, [Element(_native(generation) + _protocol(protocol) + socket.inet_aton(address), timeout=timeout)])
        if low == high:
            return Change(PIN, [Element(_native(generation) + _protocol(protocol) + socket.inet_aton(address) + _port(low), timeout=timeout)])
        start = self._number(generation) + _protocol(protocol) + socket.inet_aton(address)
        return Change(PIN_RANGE, [Element(start + _port(low), start + _port(high), timeout=timeout)])

    def is_canary(self, key: bytes) -> bool:
        return key[:4] == self._number(CANARY)

    def _captured(self, generation: int, nat: Nat) -> Iterable[Element]:
        if nat is Nat.NONE:
            return
        for protocol in (Protocol.TCP, Protocol.UDP):
            yield self._ports(generation, protocol, DNS_PORT, DNS_PORT, "to_dns")
        spans = {Nat.DNS: (), Nat.PROXY: ((80, 80), (443, 443)), Nat.TCP: ((0, DNS_PORT - 1), (DNS_PORT + 1, LAST_PORT))}[nat]
        for low, high in spans:
            yield self._ports(generation, Protocol.TCP, low, high, "to_proxy")

    def _ports(self, generation: int, protocol: Protocol, low: int, high: int, chain: str) -> Element:
        start = self._number(generation) + _protocol(protocol)
        return Element(start + _port(low), start + _port(high), chain=chain)

    def _box(self, generation: int, box: Box) -> Element:
        start = self._number(generation) + _protocol(box.protocol)
        return Element(start + box.first.to_bytes(4, "big") + _port(box.low), start + box.last.to_bytes(4, "big") + _port(box.high))

    def _number(self, generation: int) -> bytes:
        return generation.to_bytes(4, "big") if self.big_endian else _native(generation)


def birth(interface: str, address: str) -> list[Change]:
    """From the slot's birth: who may send as whom."""
    return [Change(SLOT, [Element(_name(interface) + socket.inet_aton(address))])]


def meters(interface: str) -> list[Change]:
    """Counters of what a sandbox sends and receives."""
    return [Change(name, [Element(_name(interface), expression=counter())]) for name in (SENT, RECEIVED)]


def limits(interface: str, budget: Budget, *, used: int = 0) -> list[Change]:
    """How many connections a sandbox may have open, and how many bytes it may still move, of which `used` are gone already."""
    name = _name(interface)
    return [
        Change(CEILING, [Element(name, chain=ceiling(budget), returns=True)]),
        Change(BUDGET, [Element(name, expression=quota(budget.bytes, used))] if budget.bytes is not None else []),
    ]


def ceiling(budget: Budget) -> str:
    """The chain that refuses connections beyond a budget's, and the set in which it counts them."""
    return f"{CEILINGS}{budget.connections or OPEN_CONNECTIONS}"


def left_behind(interface: str, budget: Budget) -> list[Change]:
    """What packets of a sandbox may have put into sets, to be taken out when it has gone. Each by itself: what is not there can't be."""
    return [Change(name, [Element(_name(interface))], add=False) for name in (*OF_PACKETS, ceiling(budget))]


def host(addresses: Iterable[str], *, add: bool = True) -> Change:
    return Change(HOST, [Element(socket.inet_aton(address)) for address in addresses], add)


def interface_of(key: bytes) -> str:
    """The interface at the beginning of a key."""
    return key[:16].rstrip(b"\0").decode(errors="replace")


def undo(changes: Iterable[Change]) -> list[Change]:
    return [Change(change.set, [Element(element.key, element.end) for element in change.elements], add=False) for change in changes]


def _name(interface: str) -> bytes:
    return interface.encode().ljust(16, b"\0")


def _native(generation: int) -> bytes:
    """As the mark of packets and connections is kept: in the machine's byte order."""
    return struct.pack("=I", generation)


def _protocol(protocol: Protocol) -> bytes:
    return bytes([protocol, 0, 0, 0])


def _port(port: int) -> bytes:
    return struct.pack(">HH", port, 0)
