"""One measured figure: its samples, what is known of them, and the floor beside them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Floor:
    """The same thing done without Corral, in the same run."""

    name: str
    samples: Sequence[float]


@dataclass(frozen=True)
class Figure:
    """`samples` in `unit`; what failed is counted, not hidden. `more` holds what else the figure is asked for."""

    name: str
    unit: str
    samples: Sequence[float]
    failures: int = 0
    floor: Floor | None = None
    more: dict[str, Any] = field(default_factory=dict[str, Any])

    def document(self) -> dict[str, Any]:
        """The JSON object that `corral bench --json` prints."""
        p50 = percentile(self.samples, 50)
        floor = percentile(self.floor.samples, 50) if self.floor else None
        known = {
            "figure": self.name,
            "unit": self.unit,
            "n": len(self.samples),
            "failures": self.failures,
            "min": min(self.samples, default=None),
            "p50": p50,
            "p90": percentile(self.samples, 90),
            "p99": percentile(self.samples, 99),
            "max": max(self.samples, default=None),
            "floor": {"name": self.floor.name, "p50": floor} if self.floor else None,
            "ratio": p50 / floor if p50 is not None and floor else None,
        }
        return {name: _rounded(value) for name, value in (known | self.more).items()}


def percentile(samples: Sequence[float], share: float) -> float | None:
    """The smallest sample that at least `share` percent are not above (nearest rank)."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(len(ordered) * share / 100) - 1)] if ordered else None


def timed(do: Callable[[], object]) -> float:
    """Milliseconds."""
    began = time.perf_counter()
    do()
    return (time.perf_counter() - began) * 1000


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}  # pyright: ignore[reportUnknownVariableType] - JSON
    return value
