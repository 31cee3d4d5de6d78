"""`corral doctor`: what this machine can do, what it lacks and how to mend each."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from corral.places import Places
from corral.settings import Settings
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


@dataclass(frozen=True)
class Setting:
    name: str
    value: str
    origin: str


def examine(places: Places, *, checks: Sequence[Check] = CHECKS) -> Iterator[Line]:
    """Try each thing in turn. Nothing is changed."""
    machine = this_machine(places)
    for check in checks:
        finding = check.probe(machine)
        verdict = Verdict.OK if finding.ok else Verdict.BROKEN if check.needed else Verdict.WORSE
        yield Line(check.name, verdict, finding.text, "" if finding.ok else finding.mend)


def origins(home: Path | None) -> list[Setting]:
    """The settings a server started now would have, and for each what won: a flag, a variable, a file or the default. Raises `SetupError` for a wrong one."""
    settings = Settings.load({"home": home}, environ=os.environ)
    return [Setting(name, str(getattr(settings, name)), origin) for name, origin in sorted(settings.origin.items())]


def as_json(lines: Sequence[Line], settings: Sequence[Setting]) -> dict[str, Any]:
    """For programs: `ok` is false when a sandbox can't run."""
    return {
        "ok": all(line.verdict is not Verdict.BROKEN for line in lines),
        "checks": [asdict(line) for line in lines],
        "settings": {setting.name: {"value": setting.value, "from": setting.origin} for setting in settings},
    }
