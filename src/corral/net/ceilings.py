"""Chains of a switch's table that refuse a sandbox's connections beyond so many open ones: one for each number that some policy's budget names, made and removed by netlink.

    set over_40 { ifname; flags dynamic }       for each interface, how many it has open
    chain over_40                               add @over_40 { iifname ct count over 40 } goto denied

Sources: Linux include/uapi/linux/netfilter/nf_tables.h. The numbers in rules are big endian.
"""

from __future__ import annotations

import struct
import threading
from collections import Counter
from collections.abc import Iterable

from corral.net.elements import CEILINGS, OPEN_CONNECTIONS, ceiling
from corral.net.netlink import ACK, APPEND, CREATE, NESTED, attribute, nest, text
from corral.net.nfnetlink import Tables, Verdict, message
from corral.schema.egress import Budget

_NEW_CHAIN, _DELETE_CHAIN, _NEW_RULE, _NEW_SET, _DELETE_SET = 3, 5, 6, 9, 11
_NAME, _NAME_SIZE = 41, 16
"""The number by which the program `nft` knows that keys are names of interfaces, and the size of one in bytes."""
_DYNAMIC, _ADD, _OVER, _INPUT_NAME, _REGISTER, _VERDICT = 0x20, 0, 1, 6, 1, 0
_INTERFACES = 65_535
_REFUSED = "denied"
"""The table's chain that refuses, and tells."""


class Ceilings:
    """Of one table. May be used from any thread."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._held: Counter[str] = Counter()
        self._turn = threading.Lock()

    def hold(self, budget: Budget) -> None:
        """Have the chain for a budget until `release` has been called as often."""
        chain = ceiling(budget)
        with self._turn:
            if not self._held[chain] and chain not in self._tables.sets():
                self._make(chain, budget.connections or OPEN_CONNECTIONS)
            self._held[chain] += 1

    def release(self, budget: Budget) -> None:
        """One that has held it leads there no more."""
        chain = ceiling(budget)
        with self._turn:
            self._held[chain] -= 1
            if not self._held[chain]:
                del self._held[chain]
                self._remove([chain])

    def sweep(self) -> None:
        """Remove what an earlier server has made, and nobody holds."""
        with self._turn:
            self._remove([chain for chain in self.names() if chain not in self._held])

    def names(self) -> list[str]:
        """Of those that there are."""
        return [name for name in self._tables.sets() if name.startswith(CEILINGS)]

    def _make(self, chain: str, connections: int) -> None:
        table = text(1, self._tables.name)
        counted = (_number(3, _DYNAMIC), _number(4, _NAME), _number(5, _NAME_SIZE), nest(9, _number(1, _INTERFACES)), _number(10, 1))
        over = text(1, "connlimit") + nest(2, _number(1, connections), _number(2, _OVER))
        refuse = nest(2, nest(2, _number(1, Verdict.GOTO), text(2, _REFUSED)))
        expressions = (
            _expression("meta", _number(1, _REGISTER), _number(2, _INPUT_NAME)),
            _expression("dynset", text(1, chain), _number(3, _ADD), _number(4, _REGISTER), attribute(7 | NESTED, over)),
            _expression("immediate", _number(1, _VERDICT), refuse),
        )
        self._tables.transact(
            [
                message(_NEW_SET, table + text(2, chain) + b"".join(counted), flags=ACK | CREATE),
                message(_NEW_CHAIN, table + text(3, chain), flags=ACK | CREATE),
                message(_NEW_RULE, table + text(2, chain) + nest(4, *expressions), flags=ACK | CREATE | APPEND),
            ]
        )

    def _remove(self, chains: Iterable[str]) -> None:
        table = text(1, self._tables.name)
        for chain in chains:
            # Its rule goes with it.
            self._tables.transact([message(_DELETE_CHAIN, table + text(3, chain)), message(_DELETE_SET, table + text(2, chain))])


def _expression(kind: str, *data: bytes) -> bytes:
    return nest(1, text(1, kind), nest(2, *data))


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack(">i", value))
