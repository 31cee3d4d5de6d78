"""What can be done with snapshots and checkpoints. A checkpoint is a snapshot in the history of its sandbox, to compare with and to go back to."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from corral.control import lifecycle
from corral.control.accounts import OWN
from corral.control.events import EventLog
from corral.control.idempotency import Claim
from corral.control.ports import Node, SnapshotRows
from corral.control.quota import Use
from corral.control.record import Record
from corral.control.registry import Living
from corral.control.roles import Actor
from corral.control.sandboxes import Sandboxes
from corral.control.shelf import MIB, Shelf, SnapshotRecord
from corral.errors import Conflict, ImageNotFound, InvalidArgument, InvalidState
from corral.ids import is_id, new_id
from corral.images.config import ImageConfig
from corral.node.interface import Moment
from corral.schema.observe import Event
from corral.schema.sandbox import State
from corral.schema.snapshot import Diff, Merge, MergeRequest
from corral.threads import whole

AUTOMATIC = 20
"""Automatic checkpoints that a sandbox keeps: the newest."""
_HAVE_DISK = frozenset({State.RUNNING, State.FROZEN, State.PAUSED, State.STOPPED})


class Snapshots:
    """The snapshots of this server's projects."""

    def __init__(self, *, rows: SnapshotRows, shelf: Shelf, sandboxes: Sandboxes, node: Node, events: EventLog, clock: Callable[[], float] = time.time) -> None:
        self._rows = rows
        self._shelf = shelf
        self._sandboxes = sandboxes
        self._node = node
        self._events = events
        self._clock = clock
        sandboxes.on_exit = self._process_exited
        sandboxes.on_removed = self.sandbox_ended

    async def open(self) -> None:
        """Bring rows and node together; after the sandboxes. Checkpoints of sandboxes that have ended go."""
        await self._shelf.open()
        living = {record.id for record in self._sandboxes.records()}
        for record in [record for record in self._shelf.all() if record.checkpoint and record.sandbox not in living]:
            self._hide(record, None)
        await self._shelf.collect()

    # Looking

    def get(self, project: str, ref: str) -> SnapshotRecord:
        """Raises `NotFound`."""
        return self._shelf.get(project, ref)

    def unshared(self, record: SnapshotRecord) -> int:
        """Bytes that only it has."""
        return self._node.snapshots.unshared(record.id)

    def look(self, project: str, ref: str) -> SnapshotRecord:
        """The project's own, or by its id one that another shares with it. Raises `NotFound`."""
        return self._shelf.shared(project, ref) or self._shelf.get(project, ref)

    def page(self, project: str, *, sandbox: str | None, before: tuple[float, str] | None, limit: int, shared: bool = False) -> list[SnapshotRecord]:
        """Newest first, without checkpoints. `shared`: those of others that the project may use, in place of its own."""
        candidates = [record for record in self._shelf.all() if project in record.shared_with] if shared else self._shelf.of(project)
        found = [record for record in candidates if not record.checkpoint and not record.layer and sandbox in (None, record.sandbox)]
        found = [record for record in found if before is None or (record.created_at, record.id) < before]
        return sorted(found, key=lambda record: (record.created_at, record.id), reverse=True)[:limit]

    async def checkpoints(self, project: str, sandbox: str) -> list[SnapshotRecord]:
        """Of a sandbox, the oldest first."""
        of = await self._sandboxes.get(project, sandbox)
        return [record for record in self._shelf.of(project) if record.checkpoint and record.sandbox == of.id]

    # Making

    async def create(
        self, actor: Actor, sandbox: str, name: str | None, *, memory: bool = False, displace: bool = False, claim: Claim | None = None
    ) -> tuple[SnapshotRecord, dict[str, float]]:
        """A snapshot of a sandbox's disk, with `memory` of its processes too, and how long it took; a paused sandbox is resumed for its memory.

        With `displace`, one that has the name is gone as soon as the new one is there, and not before; what stands on it keeps it until it has ended. Raises `Conflict` when the name is taken or an image's, `InvalidState`, `QuotaExceeded`, `Unsupported` when its memory can't be kept.
        """
        if name is not None and self._is_image(name):
            raise Conflict(f"the name {name!r} is an image's", hint="choose another name", details={"image": name})
        if memory:
            await self._sandboxes.use(actor.project, sandbox, wake=True)
        async with self._sandboxes.hold(actor.project, sandbox) as living:
            return await self._make(living, name, actor=actor.key, memory=memory, displace=displace, claim=claim)

    async def checkpoint(self, actor: Actor, sandbox: str, name: str, *, claim: Claim | None = None) -> tuple[SnapshotRecord, dict[str, float]]:
        """As `create`; the name is unique among the sandbox's checkpoints."""
        async with self._sandboxes.hold(actor.project, sandbox) as living:
            return await self._make(living, name, actor=actor.key, checkpoint=True, claim=claim)

    async def layer(self, actor: Actor, sandbox: str, config: ImageConfig) -> SnapshotRecord:
        """What a build has made of a sandbox, with these defaults. It is in no list, and nobody's but the build's to delete."""
        async with self._sandboxes.hold(actor.project, sandbox) as living:
            return (await self._make(living, None, actor=actor.key, automatic=True, config=config))[0]

    async def _make(
        self,
        living: Living,
        name: str | None,
        *,
        actor: str,
        checkpoint: bool = False,
        automatic: bool = False,
        memory: bool = False,
        displace: bool = False,
        claim: Claim | None = None,
        config: ImageConfig | None = None,
    ) -> tuple[SnapshotRecord, dict[str, float]]:
        box, began = living.record, time.perf_counter()
        if box.state not in _HAVE_DISK:
            raise InvalidState(f"a sandbox that is {box.state} has no disk to keep", hint="wait until it is running", details={"state": box.state})
        if memory and box.state is State.STOPPED:
            raise InvalidState("a sandbox that is stopped has no memory to keep", hint="start it first, or take the snapshot without memory")
        id, scope = new_id("sn"), box.id if checkpoint else ""
        old: SnapshotRecord | None = None
        if name is not None and not displace:
            self._shelf.reserve(box.project, scope, name, id)
        try:
            image = self._node.image(box.image_id)
            if config is not None:
                image = config.spec(image)
            user, workdir = (box.user, box.workdir) if config is None else (config.user, config.workdir)
            # It counts for what the disk has now, and at most for the whole memory.
            estimate = -(-self._node.snapshots.estimate(box.id) // MIB) + (box.memory if memory else 0)
            with self._sandboxes.quotas.room(box.project, Use(disk=estimate)):
                if memory:
                    stored = await self._node.keep_warm(id, box.id, image, user=user, workdir=workdir)
                else:
                    stored = await self._node.snapshots.make(id, box.id, image, disk=box.disk, user=user, workdir=workdir)
                record = SnapshotRecord(
                    id=id,
                    project=box.project,
                    name=name,
                    sandbox=box.id,
                    image=box.image,
                    parent=stored.parent,
                    checkpoint=checkpoint,
                    automatic=automatic,
                    disk=stored.disk,
                    size=stored.size,
                    created_at=self._clock(),
                    created_by=actor,
                    memory=0 if stored.spec.warm is None else stored.spec.warm.size,
                )
                old = self._shelf.holder(box.project, name) if displace and name is not None else None
                self._shelf.put(record if old is None else replace(record, name=None))
            kind = "checkpoint.created" if checkpoint else "image.layer_created" if record.layer else "snapshot.created"
            events = [self._event(kind, record, actor)]
            if old is not None:
                events.append(self._event("snapshot.deleted", old, actor))
            await whole(self._write_down(record, events, claim, old))
            if old is not None:
                await self._shelf.collect()
        except BaseException:
            made = self._shelf.find(box.project, id)
            if old is not None and made is not None and made.name is not None:
                raise  # the rows say that the old one is gone: that leaves this one
            if name is not None:
                self._shelf.release(box.project, scope, name, id)
            if made is not None:
                await self._shelf.hide(made, None)
                await self._shelf.collect()
            raise
        return record, {"stopped": stored.stopped or 0.0, "total": time.perf_counter() - began}

    async def _write_down(self, record: SnapshotRecord, events: Sequence[Event], claim: Claim | None, old: SnapshotRecord | None) -> None:
        """Memory says what the rows say, also when the disk fails behind them."""
        written = self._rows.create(record, events, claim, instead_of=None if old is None else old.id)
        self._events.when_stored(written, *events)
        await written
        if old is not None:
            self._shelf.displace(old, record)
        # Its files are safe. Without its row the next server would take them for somebody's who was killed over them.
        await self._rows.settle()

    def _is_image(self, name: str) -> bool:
        try:
            self._node.image(name)
        except ImageNotFound:
            return False
        return True

    # Ending

    async def delete(self, actor: Actor, ref: str, *, cascade: bool) -> SnapshotRecord:
        """Delete a snapshot. With `cascade` also the snapshots made of sandboxes of it; sandboxes go on, and keep what they stand on until they end.

        Raises `Conflict`, which tells what stands on it, otherwise.
        """
        record = self._shelf.get(actor.project, ref)
        boxes = [box for box in self._sandboxes.records() if box.image_id == record.id]
        ids = {box.id for box in boxes}
        # What the server itself keeps goes when it can.
        above = [other for other in self._shelf.on(record.id) if not other.removed and other.sandbox not in ids and other.project != OWN]
        if not cascade and (boxes or above):
            # What others have that it is shared with is theirs to know.
            own = [box.id for box in boxes if box.project == record.project], [other.id for other in above if other.project == record.project]
            others = len(boxes) + len(above) - len(own[0]) - len(own[1])
            raise Conflict(
                f"{len(boxes)} sandboxes and {len(above)} snapshots stand on {record.id}{f', {others} of them of other projects' if others else ''}",
                hint="delete them first, or ask for cascade, which deletes the project's snapshots and lets the rest end in its own time",
                details={"sandboxes": own[0], "snapshots": own[1], **({"others": others} if others else {})},
            )
        # On the disk before it is answered, also where something stands on it and its files stay.
        await asyncio.gather(*(self._hide(doomed, actor.key) for doomed in self._with_descendants(record)))
        await self._shelf.collect()
        return record

    async def withdraw(self, record: SnapshotRecord, actor: str | None = None) -> None:
        """Nobody gets it any more. What stands on it, sandboxes or snapshots, goes on, and keeps it until it has ended."""
        await self._hide(record, actor)
        await self._shelf.collect()

    async def delete_checkpoint(self, actor: Actor, sandbox: str, ref: str) -> SnapshotRecord:
        """Delete a checkpoint of a sandbox."""
        box = await self._sandboxes.get(actor.project, sandbox)
        record = self._shelf.get(actor.project, ref, sandbox=box.id)
        await self._hide(record, actor.key)
        await self._shelf.collect()
        return record

    def _with_descendants(self, record: SnapshotRecord) -> list[SnapshotRecord]:
        found, todo = [record], [record]
        while todo:
            above = [other for other in self._shelf.on(todo.pop().id) if not other.removed and not other.checkpoint]
            # Those of projects that it was shared with are theirs, and keep what they stand on.
            above = [other for other in above if other.project == record.project]
            found += above
            todo += above
        return found

    def _hide(self, record: SnapshotRecord, actor: str | None) -> asyncio.Future[None]:
        event = self._event("checkpoint.deleted" if record.checkpoint else "snapshot.deleted", record, actor)
        written = self._shelf.hide(record, event)
        self._events.when_stored(written, event)
        return written

    # Sharing

    async def share(self, actor: Actor, ref: str, projects: Iterable[str]) -> SnapshotRecord:
        """Have these other projects, and no others, start sandboxes of a snapshot by its id. What they have made of it goes on when they may no more.

        Raises `InvalidArgument` for a checkpoint, which ends with its sandbox.
        """
        record = self._shelf.get(actor.project, ref)
        if record.checkpoint or record.layer:
            raise InvalidArgument(f"{record.id} can't be shared: it is of its sandbox alone", hint="take a snapshot", details={"field": "shared_with"})
        wanted = tuple(sorted({*projects} - {record.project}))
        event = self._events.next("snapshot.shared", record.project, sandbox=record.sandbox, actor=actor.key, data={"snapshot": record.id, "with": wanted})
        record, written = self._shelf.share(record, wanted, event)
        self._events.when_stored(written, event)
        await written
        return record

    async def project_removed(self, project: str) -> None:
        """A later one of its name is another: what was shared with it is not shared with that."""
        shared = [record for record in self._shelf.all() if project in record.shared_with]
        left = [(record, tuple(other for other in record.shared_with if other != project)) for record in shared]
        await asyncio.gather(*(self._shelf.share(record, others, None)[1] for record, others in left))

    # Going back

    async def rewind(self, actor: Actor, sandbox: str, ref: str) -> Record:
        """Put a sandbox's disk back to a checkpoint. Its present state is kept as a checkpoint first; processes end, and a running sandbox is started again."""
        async with self._sandboxes.hold(actor.project, sandbox) as living:
            box = living.record
            target = self._shelf.get(actor.project, ref, sandbox=box.id)
            if box.state is State.PAUSED:
                raise InvalidState(
                    "a sandbox that is paused can't be rewound: its memory belongs to its disk as it is",
                    hint="resume it first, or stop it, which gives up the memory",
                    details={"state": box.state},
                )
            before, _ = await self._make(living, self._next_name(living, "before-rewind"), actor=actor.key, checkpoint=True, automatic=True)
            record = await self._sandboxes.restart(
                living, lambda: self._node.rewind(box.id, target.id), why=f"rewound to {target.name or target.id}", actor=actor
            )
            data: Mapping[str, Any] = {"checkpoint": target.id, "name": target.name, "before": before.id}
            self._events.note("sandbox.rewound", box.project, sandbox=box.id, actor=actor.key, data=data)
            return record

    def _next_name(self, living: Living, stem: str) -> str:
        """Numbers grow: a name that was another checkpoint's a while ago would lead astray."""
        box = living.record
        names = (record.name or "" for record in self._shelf.of(box.project) if record.checkpoint and record.sandbox == box.id)
        numbers = (int(name.removeprefix(f"{stem}-")) for name in names if re.fullmatch(rf"{stem}-[0-9]{{1,15}}", name))
        living.numbers[stem] = max(living.numbers.get(stem, 0), *numbers, 0) + 1
        return f"{stem}-{living.numbers[stem]}"

    async def diff(self, project: str, sandbox: str, before: str | None, after: str | None, *, text: bool, limit: int) -> Diff:
        """What changed between two checkpoints or snapshots. Without `before`: since its image; without `after`: until now."""
        box = (await self._sandboxes.ledger.use(project, sandbox)).record
        if box.state not in _HAVE_DISK:
            raise InvalidState(f"a sandbox that is {box.state} has no disk to compare", hint="wait until it is running", details={"state": box.state})
        first = Moment(image=True) if before is None else Moment(self._moment(box, before))
        second = Moment() if after is None else Moment(self._moment(box, after))
        # It may take a minute, in which the sandbox can be stopped or deleted, and the snapshots too.
        async with self._shelf.kept(box.image_id, *(moment.snapshot for moment in (first, second) if moment.snapshot is not None)):
            return await self._node.diff(box.id, box.image_id, first, second, text=text, limit=limit)

    def _moment(self, box: Record, ref: str) -> str:
        """A checkpoint of the sandbox, else a snapshot of the project."""
        found = self._shelf.find(box.project, ref, sandbox=box.id)
        return (found or self._shelf.get(box.project, ref)).id

    async def merge(self, actor: Actor, sandbox: str, wanted: MergeRequest) -> Merge:
        """Take over into a running sandbox what a fork of it has changed. Its disk as it was is kept as a checkpoint first.

        Raises `Conflict` with what both have changed, and nothing is done, unless that is wanted otherwise.
        """
        async with self._sandboxes.hold(actor.project, sandbox) as living:
            box = living.record
            if box.state not in (State.RUNNING, State.FROZEN):
                hint = "resume it first" if box.state is State.PAUSED else "start it first"
                raise InvalidState(f"nothing can be merged into a sandbox that is {box.state}", hint=hint, details={"state": box.state})
            theirs = self._shelf.get(actor.project, self._moment(box, wanted.snapshot))
            base = self._moment(box, wanted.base) if wanted.base is not None else self._ancestor(box, theirs)
            before = None
            if not wanted.dry_run:
                before, _ = await self._make(living, self._next_name(living, "before-merge"), actor=actor.key, checkpoint=True, automatic=True)
            async with self._shelf.kept(base, theirs.id):
                changes, conflicts, done = await self._node.merge(
                    box.id,
                    box.image_id,
                    base=Moment(base) if is_id(base, "sn") else Moment(image=True),
                    theirs=Moment(theirs.id),
                    ours=Moment() if before is None else Moment(before.id),
                    on_conflict=wanted.on_conflict,
                    dry_run=wanted.dry_run,
                )
            if before is not None and not done:
                self._hide(before, actor.key)
                await self._shelf.collect()
                raise Conflict(
                    f"{len(conflicts)} paths have been changed on both sides, as {conflicts[0].path}; nothing was done",
                    hint="keep what is here with on_conflict=keep, or take what is there with on_conflict=take",
                    details={"conflicts": [conflict.model_dump() for conflict in conflicts[:1000]]},
                )
            if before is not None:
                data = {"snapshot": theirs.id, "base": base, "changes": len(changes), "conflicts": len(conflicts), "before": before.id}
                self._events.note("sandbox.merged", box.project, sandbox=box.id, actor=actor.key, data=data)
            return Merge(base=base, changes=changes, conflicts=conflicts, checkpoint=None if before is None else before.name)

    def _ancestor(self, box: Record, theirs: SnapshotRecord) -> str:
        """From what on the snapshot went its own way."""
        at = theirs.parent
        while at != box.image_id:
            record = self._shelf.find(box.project, at)
            if record is None:
                raise InvalidArgument(
                    f"base: {theirs.id} comes from nothing that {box.id} comes from or that was taken of it",
                    hint="say what both come from",
                    details={"field": "base"},
                )
            if record.sandbox == box.id:
                break
            at = record.parent
        return at

    # By itself

    def _process_exited(self, living: Living, count: int) -> None:
        every = living.record.checkpoint_every
        if every is not None and count % every == 0 and not living.checkpoint_due:
            living.checkpoint_due = True
            self._sandboxes.later(self._take_automatic(living))

    async def _take_automatic(self, living: Living) -> None:
        async with living.changing:
            # Whatever ends from now on may not be in this one.
            living.checkpoint_due = False
            if living.record.state not in (State.RUNNING, State.FROZEN):
                return
            box = living.record
            await self._make(living, self._next_name(living, "auto"), actor="node", checkpoint=True, automatic=True)
        taken = [record for record in self._shelf.of(box.project) if record.sandbox == box.id and record.automatic and record.checkpoint]
        for old in taken[:-AUTOMATIC]:
            self._hide(old, "node")
        await self._shelf.collect()

    async def sandbox_ended(self, box: Record) -> None:
        """Its checkpoints go with it."""
        if box.state in lifecycle.ENDED:
            for record in [record for record in self._shelf.of(box.project) if record.checkpoint and record.sandbox == box.id]:
                self._hide(record, None)
        await self._shelf.collect()

    def _event(self, kind: str, record: SnapshotRecord, actor: str | None) -> Event:
        data = {"snapshot": record.id, "name": record.name, "size": record.size}
        return self._events.next(kind, record.project, sandbox=record.sandbox, actor=actor, data=data)
