"""Addresses that the kernel opens because a name points to them."""

from __future__ import annotations

import time
from collections.abc import Iterable

from corral.net.elements import Switchboard
from corral.net.netlink import is_missing
from corral.net.nfnetlink import Change, Tables
from corral.net.ranges import Protocol

REMEMBERED = 100_000

Port = tuple[Protocol, int, int]


class Pins:
    """Of all sandboxes. A pin ends by itself; those of earlier generations are nobody's."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._board = Switchboard.of(tables)
        self._until: dict[tuple[int, Port, str], float] = {}

    def open(self, generation: int, ports: Iterable[Port], addresses: Iterable[str], seconds: float) -> None:
        """Open these ports of these addresses, for at least that long. Done when it returns; raises `OSError`."""
        now = time.monotonic()
        fresh: list[Change] = []
        replaced: list[Change] = []
        keys = [(generation, port, address) for port in ports for address in addresses]
        for key in keys:
            until = self._until.get(key, 0.0)
            if until >= now + seconds:
                continue
            # Twice as long as asked for, so that not every answer changes the table.
            change = self._board.pin(generation, key[1][0], key[2], key[1][1], key[1][2], timeout=2 * seconds)
            fresh.append(change)
            if until > now:
                # Adding what is there leaves the old end in place on kernels before 6.12.
                replaced.append(Change(change.set, [type(element)(element.key, element.end) for element in change.elements], add=False))
            self._until[key] = now + 2 * seconds
        try:
            self._tables.apply([*replaced, *fresh])
        except OSError as error:
            if not (replaced and is_missing(error)):
                for key in keys:
                    self._until.pop(key, None)
                raise
            # One has ended just now.
            self._tables.apply(fresh)
        if len(self._until) > REMEMBERED:
            self._until = {key: until for key, until in self._until.items() if until > now}
