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
    """Of all sandboxes. A pin ends with its sandbox, and before that by itself; those of a sandbox's former policies are nobody's."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._board = Switchboard.of(tables)
        self._until: dict[int, dict[tuple[Port, str], float]] = {}
        """When each ends, by generation."""
        self._count = 0

    def open(self, generation: int, ports: Iterable[Port], addresses: Iterable[str], seconds: float) -> None:
        """Open these ports of these addresses, for at least that long. Done when it returns; raises `OSError`."""
        now = time.monotonic()
        fresh: list[Change] = []
        replaced: list[Change] = []
        known = self._until.setdefault(generation, {})
        keys = [(port, address) for port in ports for address in addresses]
        for key in keys:
            until = known.get(key, 0.0)
            if until >= now + seconds:
                continue
            # Twice as long as asked for, so that not every answer changes the table.
            change = self._pin(generation, key, 2 * seconds)
            fresh.append(change)
            if until > now:
                # Adding what is there leaves the old end in place on kernels before 6.12.
                replaced.append(_without(change))
            self._count += key not in known
            known[key] = now + 2 * seconds
        try:
            self._tables.apply([*replaced, *fresh])
        except OSError as error:
            if not (replaced and is_missing(error)):
                for key in keys:
                    self._count -= known.pop(key, None) is not None
                raise
            # One has ended just now.
            self._tables.apply(fresh)
        if self._count > REMEMBERED:
            self._forget(now)

    def close(self, generations: Iterable[int]) -> None:
        """Take back what was opened for these generations. Raises `OSError`."""
        now = time.monotonic()
        changes: list[Change] = []
        for generation in generations:
            known = self._until.pop(generation, {})
            self._count -= len(known)
            changes += [_without(self._pin(generation, key, 1.0)) for key, until in known.items() if until > now]
        try:
            self._tables.apply(changes)
        except OSError as error:
            if not is_missing(error):
                raise
            # One has ended just now, and with it nothing was done.
            for change in changes:
                try:
                    self._tables.apply([change])
                except OSError as one:
                    if not is_missing(one):
                        raise

    def _pin(self, generation: int, key: tuple[Port, str], seconds: float) -> Change:
        (protocol, low, high), address = key
        return self._board.pin(generation, protocol, address, low, high, timeout=seconds)

    def _forget(self, now: float) -> None:
        living = ((generation, {key: until for key, until in known.items() if until > now}) for generation, known in self._until.items())
        self._until = {generation: known for generation, known in living if known}
        self._count = sum(map(len, self._until.values()))


def _without(change: Change) -> Change:
    """Its opposite. A deletion names no time."""
    return Change(change.set, [type(element)(element.key, element.end) for element in change.elements], add=False)
