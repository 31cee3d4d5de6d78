"""What a project may have at once, and what it has."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from corral.control.lifecycle import ACTIVE, LIVING
from corral.control.record import Record
from corral.errors import QuotaExceeded


@dataclass(frozen=True)
class Limits:
    """None: no limit. Sandboxes and disk (MiB) are counted while a sandbox lives, cpu (cores) and memory (MiB) while it is active."""

    sandboxes: int | None = None
    cpu: float | None = None
    memory: int | None = None
    disk: int | None = None

    @property
    def unlimited(self) -> bool:
        return self == _UNLIMITED


_UNLIMITED = Limits()


@dataclass(frozen=True)
class Use:
    """What sandboxes take together."""

    sandboxes: int = 0
    cpu: float = 0.0
    memory: int = 0
    disk: int = 0

    def __add__(self, other: Use) -> Use:
        return Use(self.sandboxes + other.sandboxes, self.cpu + other.cpu, self.memory + other.memory, self.disk + other.disk)


_UNITS = {"sandboxes": "", "cpu": " cores", "memory": " MiB", "disk": " MiB"}


def use(records: Iterable[Record]) -> Use:
    """What these sandboxes count for."""
    total = Use()
    for record in records:
        if record.state in LIVING:
            total += Use(sandboxes=1, disk=record.disk)
        if record.state in ACTIVE:
            total += Use(cpu=record.cpu, memory=record.memory)
    return total


def check(limits: Limits, used: Use, wanted: Use) -> None:
    """Raises `QuotaExceeded`, which names the limit, when `wanted` does not fit beside `used`."""
    total = used + wanted
    for field in fields(Limits):
        limit: float | None = getattr(limits, field.name)
        if limit is None or getattr(wanted, field.name) == 0 or getattr(total, field.name) <= limit + 1e-9:
            continue
        unit, have, want = _UNITS[field.name], getattr(used, field.name), getattr(wanted, field.name)
        raise QuotaExceeded(
            f"the project may have {limit:g}{unit} of {field.name} at once; it has {have:g} and this needs {want:g} more",
            hint="delete or stop other sandboxes of the project, or have its limit raised",
            details={"quota": field.name, "limit": limit, "used": have, "wanted": want},
        )
