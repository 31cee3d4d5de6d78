"""What a project may have at once, and what it has."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
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


class Quotas:
    """Of all projects. `limits` and `used` are asked for a project's; what is promised and in no record yet is counted beside that."""

    def __init__(self, limits: Callable[[str], Limits], used: Callable[[str], Use]) -> None:
        self._limits = limits
        self._used = used
        self._promised: dict[str, list[Use]] = defaultdict(list)

    def check(self, project: str, wanted: Use) -> None:
        """Raises `QuotaExceeded` when this does not fit beside what the project has."""
        limits = self._limits(project)
        if not limits.unlimited:
            check(limits, sum(self._promised.get(project, ()), self._used(project)), wanted)

    @contextmanager
    def room(self, project: str, wanted: Use) -> Generator[None]:
        """As `check`; and it is counted until the end of the block, by which the records must say so themselves."""
        self.check(project, wanted)
        with self.keep(project, wanted):
            yield

    @contextmanager
    def keep(self, project: str, wanted: Use) -> Generator[None]:
        """Count it until the end of the block, without asking whether there is room."""
        self._promised[project].append(wanted)
        try:
            yield
        finally:
            self._promised[project].remove(wanted)
            if not self._promised[project]:
                del self._promised[project]
