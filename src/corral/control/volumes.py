"""The volumes of this server's projects. All are known in memory: a create asks for them by name."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import structlog

from corral.control.events import EventLog
from corral.control.idempotency import Claim
from corral.control.ports import VolumeRows
from corral.control.ports import Volumes as NodeVolumes
from corral.control.record import Record, moment
from corral.control.roles import Actor
from corral.errors import Conflict, InvalidArgument, NotFound
from corral.ids import new_id
from corral.node.interface import VolumeUse
from corral.schema.observe import Event
from corral.schema.volume import Volume, VolumeCreate, VolumeMount

DEFAULT_SIZE = 1024
"""MiB."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class VolumeRecord:
    """A volume as the control plane keeps it: the row of the store. `size` in MiB, `created_at` in seconds since 1970."""

    id: str
    project: str
    name: str
    size: int
    created_at: float
    created_by: str


class Volumes:
    """`sandboxes` gives the living ones of all projects."""

    def __init__(
        self, *, rows: VolumeRows, node: NodeVolumes, events: EventLog, sandboxes: Callable[[], Iterable[Record]], clock: Callable[[], float] = time.time
    ) -> None:
        self._rows = rows
        self._node = node
        self._events = events
        self._sandboxes = sandboxes
        self._clock = clock
        self._records: dict[str, VolumeRecord] = {}
        self._names: dict[tuple[str, str], str] = {}
        self._making: set[str] = set()

    async def load(self) -> None:
        """What the rows say; before sandboxes are found again."""
        for record in await self._rows.all():
            self._put(record)

    async def open(self) -> None:
        """Bring rows and node together: what is made for nobody goes. The node must be open."""
        there = set(self._node.list())
        for id in there - self._records.keys():
            log.info("removing a volume that was made for nobody", volume=id)
            await self._node.remove(id)
        for id in self._records.keys() - there:
            log.error("volume_lost", volume=id)

    # Looking

    def get(self, project: str, ref: str) -> VolumeRecord:
        """By its name or id. Raises `NotFound`."""
        record = self._records.get(self._names.get((project, ref), ref))
        if record is None or record.project != project:
            raise NotFound(f"there is no volume {ref[:80]!r}", hint="`corral volume create NAME` makes one", details={"volume": ref[:80]})
        return record

    def _made(self, project: str, ref: str) -> VolumeRecord:
        """As `get`. Raises `Conflict` for one that is being made: there may be nothing of it in the end."""
        record = self.get(project, ref)
        if record.id in self._making:
            raise Conflict(f"the volume {record.name!r} is being made", hint="try again", details={"volume": record.id})
        return record

    def find(self, id: str) -> VolumeRecord | None:
        """Of whatever project: for who proves otherwise that it may be opened."""
        return self._records.get(id)

    def of(self, project: str) -> list[VolumeRecord]:
        """By name."""
        return sorted((record for record in self._records.values() if record.project == project), key=lambda record: record.name)

    def mib(self, project: str) -> int:
        """What they count for in the quota of disk."""
        return sum(record.size for record in self.of(project))

    def uses(self, project: str, wanted: Mapping[str, VolumeMount]) -> tuple[VolumeUse, ...]:
        """What a sandbox asks for, outer paths first. Raises `NotFound`, `Conflict`."""
        return tuple(VolumeUse(self._made(project, mount.volume).id, path, mount.read_only, mount.sub_path) for path, mount in sorted(wanted.items()))

    def show(self, record: VolumeRecord) -> Volume:
        return Volume(
            id=record.id,
            name=record.name,
            project=record.project,
            size=record.size,
            sandboxes=list(self._users(record.id)),
            created_at=moment(record.created_at),
            created_by=record.created_by,
        )

    def _users(self, id: str) -> Iterator[str]:
        return (box.id for box in self._sandboxes() if any(use.id == id for use in box.volumes))

    def size(self, project: str, wanted: VolumeCreate) -> int:
        """MiB that it will have. Raises `NotFound` for its source."""
        if wanted.source is None:
            return DEFAULT_SIZE if wanted.size is None else wanted.size
        source = self.get(project, wanted.source)
        if wanted.size not in (None, source.size):
            raise InvalidArgument(f"size: a copy of {source.name!r} has its size, {source.size} MiB", hint="leave it out", details={"field": "size"})
        return source.size

    # Changing

    async def create(self, actor: Actor, wanted: VolumeCreate, *, claim: Claim | None = None) -> VolumeRecord:
        """An empty volume, or a copy of another. Raises `Conflict` when the project has one of that name. The caller has looked at the quota."""
        source = None if wanted.source is None else self._made(actor.project, wanted.source)
        record = VolumeRecord(new_id("vo"), actor.project, wanted.name, self.size(actor.project, wanted), self._clock(), actor.key)
        if (holder := self._names.get((actor.project, wanted.name))) is not None:
            raise Conflict(f"the project has a volume {wanted.name!r} already", hint="choose another name", details={"volume": holder})
        self._put(record)
        self._making.add(record.id)
        try:
            if source is None:
                await self._node.create(record.id, record.size)
            else:
                await self._node.copy(record.id, source.id)
            await self._write_down(record, claim)
        except BaseException:
            self._drop(record)
            await self._node.remove(record.id)
            raise
        finally:
            self._making.discard(record.id)
        return record

    async def _write_down(self, record: VolumeRecord, claim: Claim | None) -> None:
        try:
            await self._stored("created", record, record.created_by, lambda event: self._rows.create(record, [event], claim))
            # What is synced in it must not be taken for nobody's after a power cut.
            await self._rows.settle()
        except BaseException:
            # It may have been written: that can't be called back, and is done whether or not somebody waits for it.
            self._stored("deleted", record, None, lambda event: self._rows.remove(record.id, [event]))
            raise

    async def delete(self, actor: Actor, ref: str) -> VolumeRecord:
        """Delete it with everything in it. Raises `Conflict` while a living sandbox has it, stopped ones too, and while it is being made."""
        record = self._made(actor.project, ref)
        if users := list(self._users(record.id)):
            raise Conflict(
                f"the volume {record.name!r} is in use by {', '.join(users[:5])}{' …' if len(users) > 5 else ''}",
                hint="delete those sandboxes first",
                details={"sandboxes": users},
            )
        self._drop(record)
        await self._stored("deleted", record, actor.key, lambda event: self._rows.remove(record.id, [event]))
        await self._node.remove(record.id)
        return record

    def _put(self, record: VolumeRecord) -> None:
        self._records[record.id] = record
        self._names[record.project, record.name] = record.id

    def _drop(self, record: VolumeRecord) -> None:
        del self._records[record.id]
        del self._names[record.project, record.name]

    def _stored(self, what: str, record: VolumeRecord, actor: str | None, change: Callable[[Event], asyncio.Future[None]]) -> asyncio.Future[None]:
        data = {"volume": record.id, "name": record.name, "size": record.size}
        event = self._events.next(f"volume.{what}", record.project, actor=actor, data=data)
        written = change(event)
        self._events.when_stored(written, event)
        return written
