"""One sandbox as the edge process sees it: its policy, open connections, what its names were resolved to, and what has been decided for it."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from corral.net import policy
from corral.net.policy import Compiled
from corral.net.redact import Patterns
from corral.net.splice import Purse
from corral.net.streams import EVERYBODY, OF_SANDBOX, Room
from corral.net.tenant import ROUND, Tenant

CONNECTIONS = 1000
"""Open at once, unless the policy's budget says otherwise."""
VALUES = 100
"""Values of secrets that are looked for, former ones included."""
NAMES = 4096
"""Addresses whose names are remembered."""
NAMES_EACH = 64
"""Names remembered for one address: what shares an address may be as many as somebody likes."""
KEPT = 300.0
"""Seconds that an address keeps its name beyond the answer's life: programs hold on to what they have resolved."""


@dataclass(slots=True)
class Bucket:
    """So many at once, refilled at a rate per second."""

    size: float
    rate: float
    _level: float = field(init=False)
    _at: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self._level = self.size

    def take(self, now: float) -> bool:
        self._level = min(self.size, self._level + max(0.0, now - self._at) * self.rate)
        self._at = now
        if self._level < 1:
            return False
        self._level -= 1
        return True


@dataclass(slots=True, eq=False)
class Held:
    """An open connection, for the day the policy changes: `allowed` says whether it would still be let through, `cut` ends it."""

    allowed: Callable[[Compiled], bool]
    cut: Callable[[], None]


class Occupant:
    """Mutable; lives in the edge process only."""

    def __init__(self, tenant: Tenant, *, after: int = 0) -> None:
        """`after`: the last generation of an earlier sandbox in the slot, as far as it is known."""
        self.tenant: Tenant = tenant
        self.generations = {tenant.generation}
        """Of all its policies."""
        self._after = after
        self.left = False
        """Whether the sandbox has gone: nothing is told to its address any more."""
        self.compiled: Compiled = policy.compile(tenant.policy)
        self.connections: set[Held] = set()
        self.sent = self.received = 0
        self.purse = Purse()
        self.room = Room(OF_SANDBOX, EVERYBODY)
        self.queries = Bucket(200, 100)
        self.lookups = 0
        """DNS queries under way."""
        self.decided: dict[tuple[str, int], bool] = {}
        """Name or address, and port → whether it was approved for good."""
        self._take(tenant)
        self.logged: dict[tuple[str, int, str], float] = {}
        """DNS queries that need not be logged again soon."""
        self._values: dict[str, None] = {}
        """Of its secrets, also those that have been replaced: what was sent with them may be answered yet. The latest last."""
        self._patterns = Patterns([])
        self._know(tenant)
        self._names: dict[int, dict[str, float]] = {}

    @property
    def sandbox(self) -> str:
        return self.tenant.sandbox

    def owns(self, mark: int) -> bool:
        """Whether what carries this mark came from the sandbox, and not from an earlier one in its slot. Marks are generations, of the policy under which a packet was let through."""
        now = self.tenant.generation
        return (now - mark) % ROUND < (now - self._after) % ROUND

    @property
    def patterns(self) -> Patterns:
        """The values of its secrets, also former ones, to be taken out of answers."""
        return self._patterns

    @property
    def full(self) -> bool:
        return len(self.connections) >= (self.tenant.policy.budget.connections or CONNECTIONS)

    @property
    def spent(self) -> bool:
        limit = self.tenant.policy.budget.bytes
        return limit is not None and self.sent + self.received >= limit

    def change(self, tenant: Tenant) -> None:
        """Another policy for the same sandbox: what it no longer allows is cut."""
        if tenant.policy != self.tenant.policy:
            self.compiled = policy.compile(tenant.policy)
        self.tenant = tenant
        self.generations.add(tenant.generation)
        self._take(tenant)
        self._know(tenant)
        for held in list(self.connections):
            if not held.allowed(self.compiled):
                held.cut()

    def _take(self, tenant: Tenant) -> None:
        self.decided |= {(to, port): allowed for to, port, allowed in tenant.decided}

    def _know(self, tenant: Tenant) -> None:
        before = list(self._values)
        for value in tenant.secrets.values():
            self._values.pop(value, None)
            self._values[value] = None
        while len(self._values) > max(VALUES, len(tenant.secrets)):
            del self._values[next(iter(self._values))]
        if set(before) != set(self._values):
            self._patterns = Patterns(self._values)

    def leave(self) -> None:
        self.left = True
        for held in list(self.connections):
            held.cut()

    def resolved(self, name: str, addresses: tuple[str, ...], ttl: float) -> None:
        """Remember that these addresses were told for the name."""
        until = time.monotonic() + ttl + KEPT
        for address in map(int, map(ipaddress.IPv4Address, addresses)):
            names = self._names.pop(address, {})
            names.pop(name, None)
            names[name] = until
            while len(names) > NAMES_EACH:
                del names[next(iter(names))]
            self._names[address] = names
        while len(self._names) > NAMES:
            del self._names[next(iter(self._names))]

    def names_of(self, address: int) -> list[str]:
        """The names by which the sandbox may mean this address, the latest last."""
        now = time.monotonic()
        return [name for name, until in self._names.get(address, {}).items() if until > now]

    def pinned(self) -> dict[str, list[str]]:
        """Names with the addresses they were resolved to."""
        result: dict[str, list[str]] = {}
        for address in self._names:
            for name in self.names_of(address):
                result.setdefault(name, []).append(str(ipaddress.IPv4Address(address)))
        return result
