"""The snapshots there are, in memory: found by id or name without asking the store, removed when nothing stands on them any more.

A snapshot is gone for everybody as soon as it is deleted; its disk stays while a sandbox or another snapshot stands on it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import structlog

from corral.control.ports import SnapshotRows, Snapshots
from corral.control.record import moment
from corral.errors import Conflict, ImageNotFound, NotFound
from corral.ids import is_id
from corral.schema.observe import Event
from corral.schema.snapshot import Snapshot

MIB = 1 << 20

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class SnapshotRecord:
    """A snapshot as the control plane keeps it: the row of the store. `created_at` in seconds since 1970, `disk` in MiB, `size` and `memory` in bytes."""

    id: str
    project: str
    name: str | None
    sandbox: str
    image: str
    parent: str
    checkpoint: bool
    automatic: bool
    disk: int
    size: int
    created_at: float
    created_by: str
    removed: bool = False
    """Nobody sees it any more, but something may stand on it."""
    memory: int = 0
    """0: it has none."""
    shared_with: tuple[str, ...] = ()
    """Other projects that may start sandboxes of it."""

    @property
    def layer(self) -> bool:
        """It is the result of a build's step, which `control.images` looks after."""
        return self.automatic and not self.checkpoint

    @property
    def scope(self) -> str:
        """Within what its name is unique: the project, or its sandbox."""
        return self.sandbox if self.checkpoint else ""

    def show(self, *, unshared: int | None = None, timing: Mapping[str, float] | None = None, to: str | None = None) -> Snapshot:
        """As the API shows it. `to`: the project that asks; another than its own is not told with whom else it is shared."""
        return Snapshot(
            id=self.id,
            name=self.name,
            project=self.project,
            sandbox=self.sandbox,
            image=self.image,
            parent=self.parent,
            checkpoint=self.checkpoint,
            automatic=self.automatic,
            disk=self.disk,
            size=self.size,
            memory=self.memory or None,
            shared_with=list(self.shared_with) if to in (None, self.project) else [to],
            unshared=unshared,
            created_at=moment(self.created_at),
            created_by=self.created_by,
            timing=None if timing is None else dict(timing),
        )


class Shelf:
    """All projects' snapshots. `standing` gives the image of every living sandbox."""

    def __init__(self, rows: SnapshotRows, node: Snapshots, standing: Callable[[], Iterable[str]]) -> None:
        self._rows = rows
        self._node = node
        self._standing = standing
        self._records: dict[str, SnapshotRecord] = {}
        self._names: dict[tuple[str, str, str], str] = {}
        self._kept = Counter[str]()
        self._collecting = asyncio.Lock()
        self.also: Callable[[str, str], str | None] = lambda _project, _ref: None
        """What images and templates of a project mean on the node."""

    async def open(self) -> None:
        """Bring together what the rows say and what the node has. The node must be open."""
        for record in await self._rows.all():
            self._put(record)
        there = {stored.spec.id for stored in self._node.list()}
        for id in there - self._records.keys():
            log.info("removing a snapshot that was made for nobody", snapshot=id)
            await self._node.remove(id)
        for id in self._records.keys() - there:
            log.error("snapshot_lost", snapshot=id)
            await self._forget(self._records[id])
        await self.collect()

    # Looking

    def find(self, project: str, ref: str, *, sandbox: str = "") -> SnapshotRecord | None:
        """By id; or by name, of the project or (with `sandbox`) of that one's checkpoints."""
        record = self._records.get(ref) or self._records.get(self._names.get((project, sandbox, ref), ""))
        return record if record is not None and record.project == project and not record.removed else None

    def get(self, project: str, ref: str, *, sandbox: str = "") -> SnapshotRecord:
        """Raises `NotFound`."""
        if (record := self.find(project, ref, sandbox=sandbox)) is None or (sandbox and record.sandbox != sandbox):
            what, where = ("checkpoint", f" of {sandbox}") if sandbox else ("snapshot", "")
            hint = "`corral checkpoint ls SANDBOX` lists those there are" if sandbox else "`corral snapshot ls` lists those there are"
            raise NotFound(f"there is no {what} {ref[:80]!r}{where}", hint=hint)
        return record

    def shared(self, project: str, id: str) -> SnapshotRecord | None:
        """Another project's that this one may use, by its id."""
        record = self._records.get(id)
        return record if record is not None and project in record.shared_with and not record.removed else None

    def image(self, project: str, ref: str) -> str:
        """What a sandbox of this project gets when it asks for that image: a snapshot's id, or the word itself. Raises `ImageNotFound` for another's snapshot that is not shared with it."""
        if (record := self.find(project, ref) or self.shared(project, ref)) is not None:
            return record.id
        if (meant := self.also(project, ref)) is not None:
            return meant
        if is_id(ref, "sn"):
            raise ImageNotFound(f"there is no snapshot {ref}", hint="`corral snapshot ls` lists those there are", details={"image": ref})
        return ref

    def of(self, project: str) -> Iterator[SnapshotRecord]:
        """Those of a project, checkpoints too, the oldest first."""
        return (record for record in self._records.values() if record.project == project and not record.removed)

    def all(self) -> list[SnapshotRecord]:
        """Of all projects."""
        return [record for record in self._records.values() if not record.removed]

    def mib(self, project: str) -> int:
        """What they count for in the quota of disk."""
        return sum(-(-(record.size + record.memory) // MIB) for record in self.of(project))

    def on(self, id: str) -> list[SnapshotRecord]:
        """The snapshots that stand directly on one, deleted ones too."""
        return [record for record in self._records.values() if record.parent == id]

    # Changing

    def reserve(self, project: str, scope: str, name: str, id: str) -> None:
        """Take a name for a snapshot that is about to be made. Raises `Conflict`."""
        holder = self._names.setdefault((project, scope, name), id)
        if holder != id:
            what = "checkpoint" if scope else "snapshot"
            raise Conflict(f"the name {name!r} is taken by the {what} {holder}", hint="choose another name, or delete that one", details={what: holder})

    def release(self, project: str, scope: str, name: str, id: str) -> None:
        """Give a name back."""
        if self._names.get((project, scope, name)) == id:
            del self._names[project, scope, name]

    def holder(self, project: str, name: str) -> SnapshotRecord | None:
        """Which of a project's snapshots has the name. Raises `Conflict` when it is for one that is being made."""
        holder = self._names.get((project, "", name))
        if holder is not None and holder not in self._records:
            raise Conflict(f"the name {name!r} is for the snapshot {holder}, which is being made", hint="try again", details={"snapshot": holder})
        return None if holder is None else self._records[holder]

    def displace(self, old: SnapshotRecord, new: SnapshotRecord) -> None:
        """The rows say already that one is gone and its name the other's."""
        if old.id in self._records:
            self._put(replace(old, removed=True))
        self._put(new)

    def put(self, record: SnapshotRecord) -> None:
        self._put(record)

    def share(self, record: SnapshotRecord, projects: tuple[str, ...], event: Event | None) -> tuple[SnapshotRecord, asyncio.Future[None]]:
        """Those other projects may use it from now on, and no more."""
        changed = replace(record, shared_with=projects)
        self._put(changed)
        return changed, self._rows.share(record.id, projects, [] if event is None else [event])

    def hide(self, record: SnapshotRecord, event: Event | None) -> asyncio.Future[None]:
        """It is deleted for everybody; `collect` removes it when it can."""
        self._put(replace(record, removed=True))
        if record.name is not None:
            self.release(record.project, record.scope, record.name, record.id)
        return self._rows.hide(record.id, [] if event is None else [event])

    @asynccontextmanager
    async def kept(self, *ids: str) -> AsyncGenerator[None]:
        """Somebody looks at these: what of them is deleted meanwhile is removed afterwards."""
        self._kept.update(ids)
        try:
            yield
        finally:
            self._kept.subtract(ids)
            await self.collect()

    async def collect(self) -> None:
        """Remove the deleted ones on which nothing stands any more."""
        async with self._collecting:
            while doomed := [record for record in self._records.values() if record.removed and not self.on(record.id)]:
                standing = {*self._standing(), *+self._kept}
                free = [record for record in doomed if record.id not in standing]
                if not free:
                    return
                for record in free:
                    await self._node.remove(record.id)
                    await self._forget(record)

    async def _forget(self, record: SnapshotRecord) -> None:
        del self._records[record.id]
        if record.name is not None:
            self.release(record.project, record.scope, record.name, record.id)
        await self._rows.forget(record.id)

    def _put(self, record: SnapshotRecord) -> None:
        self._records[record.id] = record
        if record.name is not None and not record.removed:
            self._names[record.project, record.scope, record.name] = record.id
