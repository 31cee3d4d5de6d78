"""What each step took, as it happens and as a table at the end."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Timings:
    rows: list[tuple[str, float]] = field(default_factory=list[tuple[str, float]])

    @contextmanager
    def step(self, name: str) -> Generator[None, None, None]:
        """Time a step; one that raises is not in the table."""
        began = time.perf_counter()
        yield
        self.rows.append((name, time.perf_counter() - began))

    def lines(self) -> list[str]:
        width = max(len(name) for name, _ in self.rows)
        total = sum(seconds for _, seconds in self.rows)
        return [f"{name:<{width}}  {_duration(seconds):>9}" for name, seconds in [*self.rows, ("all together", total)]]


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
