"""`corral doctor`: what this machine can do, what it lacks and how to mend each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from corral.places import Places
from corral.setup.check import Check
from corral.setup.checks import CHECKS
from corral.setup.machine import this_machine


class Verdict(StrEnum):
    OK = "ok"
    WORSE = "worse"
    """Corral works, but slower or less comfortably."""
    BROKEN = "broken"


@dataclass(frozen=True)
class Line:
    """One line of the report."""

    check: str
    verdict: Verdict
    text: str
    mend: str = ""


def examine(places: Places, *, checks: Sequence[Check] = CHECKS) -> Iterator[Line]:
    """Try each thing in turn. Nothing is changed."""
    machine = this_machine(places)
    for check in checks:
        finding = check.probe(machine)
        verdict = Verdict.OK if finding.ok else Verdict.BROKEN if check.needed else Verdict.WORSE
        yield Line(check.name, verdict, finding.text, "" if finding.ok else finding.mend)


def as_json(lines: Sequence[Line]) -> dict[str, Any]:
    """For programs: `ok` is false when a sandbox can't run."""
    return {"ok": all(line.verdict is not Verdict.BROKEN for line in lines), "checks": [asdict(line) for line in lines]}
