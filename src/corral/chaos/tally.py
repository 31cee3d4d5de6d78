"""What was done, what was done to it, and what should never have been seen."""

from __future__ import annotations

import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Violation:
    """A promise that was broken. `step` names the client's step or the inspection; with the seed it is what to look at again."""

    kind: str
    step: str
    detail: str
    at: float
    """Seconds since the run began."""


class Tally:
    """Counts, by name; and violations, said at once and kept. `quiet`: say nothing meanwhile."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.did: Counter[str] = Counter()
        """What clients did and got."""
        self.suffered: Counter[str] = Counter()
        """What the gremlin did."""
        self.refused: Counter[str] = Counter()
        """Errors that a client may rightly see under fire, by action and class."""
        self.checked: Counter[str] = Counter()
        """What was compared, of which violations are what did not hold."""
        self.violations: list[Violation] = []
        self.quiet = quiet
        self._began = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._began

    def violation(self, kind: str, step: str, detail: str) -> None:
        found = Violation(kind, step, detail, round(self.elapsed, 3))
        self.violations.append(found)
        self.say(f"VIOLATION {kind} at {step}: {detail}")

    def say(self, line: str) -> None:
        """A line about the course of the run, on standard error."""
        if not self.quiet:
            sys.stderr.write(f"{self.elapsed:8.1f} s  {line}\n")
            sys.stderr.flush()

    def document(self) -> dict[str, Any]:
        return {
            "did": dict(sorted(self.did.items())),
            "done_to_it": dict(sorted(self.suffered.items())),
            "refused": dict(sorted(self.refused.items())),
            "checked": dict(sorted(self.checked.items())),
            "violations": [asdict(violation) for violation in self.violations],
        }
