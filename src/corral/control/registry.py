"""The living sandboxes, in memory: found by id or name without asking the store."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

from corral.control.lifecycle import ENDED
from corral.control.record import Record
from corral.errors import Conflict
from corral.node.interface import Ended


@dataclass
class Living:
    """A living sandbox: its record, replaced on each change, and the lock of who changes it."""

    record: Record
    reserved: bool = False
    """It waits for room: its name and its share of the quota are taken, but nobody sees it yet."""
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    pausing: bool = False
    """Its memory is being saved: who wants to use it waits for that, and resumes it."""
    exits: int = 0
    """Processes of it that have ended while this server watched."""
    overtaken: Ended | None = None
    """It ended while it was being made or started: the answer that it runs came later."""
    checkpoint_due: bool = False
    """An automatic checkpoint waits for its turn."""
    numbers: dict[str, int] = field(default_factory=dict[str, int])
    """The last number given to a checkpoint, by the stem of its name."""


class Registry:
    """Names are unique among the living sandboxes of a project."""

    def __init__(self) -> None:
        self._by_id: dict[str, Living] = {}
        self._by_name: dict[tuple[str, str], str] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Living]:
        return iter(self._by_id.values())

    def add(self, record: Record, *, reserved: bool = False) -> Living:
        """Raises `Conflict` when its name is taken."""
        self._take_name(record)
        living = self._by_id[record.id] = Living(record, reserved)
        return living

    def put(self, record: Record) -> None:
        """Replace the record of a living sandbox; one that has ended is forgotten. Raises `Conflict` when a new name is taken."""
        living = self._by_id[record.id]
        if record.name != living.record.name:
            self._take_name(record)
            self._drop_name(living.record)
        living.record = record
        if record.state in ENDED:
            del self._by_id[record.id]
            self._drop_name(record)

    def drop(self, id: str) -> None:
        """Forget one that never came to be."""
        if (living := self._by_id.pop(id, None)) is not None:
            self._drop_name(living.record)

    def get(self, id: str) -> Living | None:
        return self._by_id.get(id)

    def find(self, project: str, id_or_name: str) -> Living | None:
        """Of this project; another project's does not exist."""
        living = self._by_id.get(id_or_name)
        if living is None and (id := self._by_name.get((project, id_or_name))) is not None:
            living = self._by_id[id]
        return living if living is not None and living.record.project == project else None

    def of(self, project: str) -> Iterator[Record]:
        """The records of a project."""
        return (living.record for living in self._by_id.values() if living.record.project == project)

    def _take_name(self, record: Record) -> None:
        if record.name is None:
            return
        holder = self._by_name.setdefault((record.project, record.name), record.id)
        if holder != record.id:
            raise Conflict(
                f"the name {record.name!r} is taken by {holder}", hint="choose another name, or delete that sandbox first", details={"sandbox": holder}
            )

    def _drop_name(self, record: Record) -> None:
        if record.name is not None and self._by_name.get((record.project, record.name)) == record.id:
            del self._by_name[record.project, record.name]
