"""Regions of address × port for each protocol, as boxes, and how they are made disjoint (a set of intervals in nftables refuses elements that overlap)."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum

from corral.errors import InvalidArgument

BOXES = 10_000
"""What a policy may come to in one set of the kernel."""
LAST_PORT = 65_535
LAST_ADDRESS = (1 << 32) - 1


class Protocol(IntEnum):
    """IP protocol numbers."""

    ICMP = 1
    TCP = 6
    UDP = 17


@dataclass(frozen=True, slots=True, order=True)
class Box:
    """Addresses `first` to `last` (as numbers, both included), ports `low` to `high`. ICMP has no ports: 0 to 65535."""

    protocol: Protocol
    first: int
    last: int
    low: int = 0
    high: int = LAST_PORT

    def holds(self, protocol: Protocol, address: int, port: int) -> bool:
        return self.protocol is protocol and self.first <= address <= self.last and self.low <= port <= self.high

    def __str__(self) -> str:
        ends = "-".join(str(ipaddress.IPv4Address(end)) for end in sorted({self.first, self.last}))
        return f"{self.protocol.name.lower()} {ends} {self.low}-{self.high}"


Span = tuple[int, int]
"""Two numbers, both included."""


def spans(*networks: str) -> tuple[Span, ...]:
    """CIDRs as spans, sorted and joined."""
    return union((int(network[0]), int(network[-1])) for network in map(ipaddress.IPv4Network, networks))


def union(parts: Iterable[Span]) -> tuple[Span, ...]:
    """The same numbers as few spans in order."""
    joined: list[Span] = []
    for first, last in sorted(parts):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = joined[-1][0], max(last, joined[-1][1])
        else:
            joined.append((first, last))
    return tuple(joined)


def complement(parts: Iterable[Span], last: int = LAST_ADDRESS) -> tuple[Span, ...]:
    """The numbers from 0 to `last` that are in none of the spans."""
    rest: list[Span] = []
    start = 0
    for low, high in union(parts):
        if low > start:
            rest.append((start, low - 1))
        start = high + 1
    return (*rest, (start, last)) if start <= last else tuple(rest)


def within(number: int, parts: Iterable[Span]) -> bool:
    return any(first <= number <= last for first, last in parts)


def disjoint(boxes: Iterable[Box]) -> tuple[Box, ...]:
    """The same region, no two boxes overlapping. Raises `InvalidArgument` when it comes to more than `BOXES`."""
    # The ports of one network are joined first, so that at most the 33 prefixes around an address are looked at below.
    ports: dict[Protocol, dict[Span, list[Span]]] = {}
    for box in boxes:
        ports.setdefault(box.protocol, {}).setdefault((box.first, box.last), []).append((box.low, box.high))
    result: list[Box] = []
    for protocol, networks in sorted(ports.items()):
        for first, last, open_ports in _sweep({span: union(parts) for span, parts in networks.items()}):
            result += [Box(protocol, first, last, low, high) for low, high in open_ports]
            if len(result) > BOXES:
                raise InvalidArgument(f"the policy comes to more than {BOXES:,} ranges of addresses and ports", hint="join neighbouring ranges and ports")
    return tuple(result)


def _sweep(networks: dict[Span, tuple[Span, ...]]) -> Iterator[tuple[int, int, tuple[Span, ...]]]:
    """Stretches of addresses with the ports that are in the region all along, in order, neighbours with the same ports joined."""
    begin: dict[int, list[Span]] = {}
    end: dict[int, list[Span]] = {}
    for span in networks:
        begin.setdefault(span[0], []).append(span)
        end.setdefault(span[1] + 1, []).append(span)
    active: set[Span] = set()
    start, current = 0, ()
    for at in sorted(begin.keys() | end.keys()):
        active.difference_update(end.get(at, ()))
        active.update(begin.get(at, ()))
        ports = union(part for span in active for part in networks[span])
        if ports != current:
            if current:
                yield start, at - 1, current
            start, current = at, ports
