"""What one client keeps beyond its sandboxes: snapshots and a volume, and what must be in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from corral.chaos.known import Known, Printed

Digests = dict[str, set[str]]
"""By path: what the file there may be; `none` for one that may be missing."""


@dataclass(frozen=True)
class Kept:
    """A snapshot that was answered. `files` is what its sandbox had at that moment, and `printed`, if its memory was kept, what ran in it; what that got later is not in it."""

    id: str
    source: Known
    files: Digests
    printed: list[Printed] = field(default_factory=list[Printed])


@dataclass
class Store:
    """`doubtful` are ids and names of snapshots that may be there or not: making or deleting them was not answered."""

    volume: str
    """The name of the volume."""
    volume_made: bool = False
    shared: Digests = field(default_factory=dict[str, set[str]])
    """The files of the volume."""
    snapshots: dict[str, Kept] = field(default_factory=dict[str, Kept])
    doubtful: set[str] = field(default_factory=set[str])


def copy(files: Mapping[str, set[str]]) -> Digests:
    return {path: set(digests) for path, digests in files.items()}


def either(one: Mapping[str, set[str]], two: Mapping[str, set[str]]) -> Digests:
    """When it is not known which of two states it is."""
    missing = {"none"}
    return {path: one.get(path, missing) | two.get(path, missing) for path in (*one, *two)}
