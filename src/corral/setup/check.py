"""One thing that a machine must be able to do: how to try it, and how to mend it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from corral.setup.machine import Machine

Say = Callable[[str], None]
"""Takes one line for the person who waits."""

Repair = Callable[[Machine, Say], None]
"""What `corral setup` does about it; says each change it makes."""


@dataclass(frozen=True)
class Finding:
    """What a probe saw. `mend` is the exact thing to do when it is not well."""

    ok: bool
    text: str
    mend: str = ""


@dataclass(frozen=True)
class Check:
    """`probe` tries the thing by doing it and leaves no trace. Without a `repair` only a person can mend it.

    A check that is not `needed` makes Corral slower or less comfortable when it fails, not impossible.
    """

    name: str
    probe: Callable[[Machine], Finding]
    repair: Repair | None = None
    needed: bool = True


def well(text: str) -> Finding:
    return Finding(ok=True, text=text)


def ill(text: str, *, mend: str) -> Finding:
    return Finding(ok=False, text=text, mend=mend)
