"""What can be done with sandboxes. Decides by the tables and figures of its neighbours, lets the node do it, and writes it down.

It is long since it is every door to the life of a sandbox; each method is short, and what it decides by is its neighbours'.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import structlog

from corral.control import deadlines, lifecycle, quota
from corral.control.accounts import Accounts
from corral.control.admission import Gate
from corral.control.alarm import Alarm
from corral.control.events import EventLog
from corral.control.forks import Forks
from corral.control.idempotency import Claim
from corral.control.launch import Launch
from corral.control.ledger import Ledger
from corral.control.lifecycle import Action
from corral.control.pauses import Pauses
from corral.control.policies import Policies
from corral.control.ports import Node, Store
from corral.control.promises import Promises
from corral.control.quota import Quotas, Use
from corral.control.record import BUILD, Exposure, Record
from corral.control.recovery import fate
from corral.control.registry import Living
from corral.control.roles import Actor
from corral.control.secrets import Secrets
from corral.control.shelf import Shelf
from corral.control.volumes import Volumes
from corral.control.warm import fitting
from corral.errors import CorralError, ImageNotFound, InvalidArgument, InvalidState, SandboxEnded
from corral.ids import new_id
from corral.node.interface import Ended, ImageSpec, Timing
from corral.schema.sandbox import Reason, SandboxCreate, SandboxUpdate, State

AT_ONCE = 32
"""Sandboxes that one batch ends at the same time."""

log = structlog.get_logger(__name__)


class Sandboxes:
    """The sandboxes of this server. `clock` gives seconds since 1970; `booted_at` is when the machine was started, on that clock."""

    def __init__(
        self,
        *,
        store: Store,
        node: Node,
        events: EventLog,
        accounts: Accounts,
        gate: Gate,
        secrets: Secrets,
        shelf: Shelf,
        volumes: Volumes,
        clock: Callable[[], float] = time.time,
        booted_at: float = 0.0,
    ) -> None:
        self.node = node
        self.ledger = Ledger(store.sandboxes, events, clock)
        self.policies = Policies(node, self.ledger, secrets, store.rules, clock)
        self._rows = store.sandboxes
        self._gate = gate
        gate.promised = Promises(node, lambda: self.ledger.registry)
        self._shelf = shelf
        self._volumes = volumes
        self._clock = clock
        self._booted_at = booted_at
        self.quotas = Quotas(accounts.limits, self._used)
        self.pauses = Pauses(
            node=node,
            ledger=self.ledger,
            policies=self.policies,
            gate=gate,
            quotas=self.quotas,
            freed=self._freed,
            watch=self._go_on,
            later=self.later,
        )
        self.forks = Forks(self, node=node, gate=gate, volumes=volumes, clock=clock)
        self._alarm = Alarm(clock, self._ring)
        self._tasks: set[asyncio.Task[None]] = set()
        self.ready: list[Callable[[str, ImageSpec, SandboxCreate], ImageSpec | None]] = []
        """Asked for what a new sandbox of a project begins with in place of the image that it is asked for, when that gives the same sooner."""
        self.make_image: Callable[[str, str], Awaitable[bool]] | None = None
        """Makes the image that a project means by a word, when it ships with Corral and is not there yet; says whether it did."""
        self.on_exit: Callable[[Living, int], None] = lambda _living, _count: None
        """Told that a process of a sandbox has ended, and the how manieth since this server started."""
        self.on_approval: Callable[[Record, Mapping[str, Any]], None] = lambda _record, _data: None
        """Told of a connection that begins to wait for a decision, and of the decision."""
        self.on_created: Callable[[Record], Awaitable[None]] | None = None
        """Told of a new one that runs, before its create is answered; when it fails, so does the create."""
        self.on_running: Callable[[Record], None] = lambda _record: None
        """Told of one that runs from now on: made, started or resumed."""
        self.on_gone: Callable[[str], None] = lambda _id: None
        """Told of one that does not any more."""
        self.on_removed: Callable[[Record], Awaitable[None]] | None = None
        """Told that the node has nothing of a sandbox any more."""

    # Opening and leaving

    async def open(self) -> None:
        """Open the node, and bring together what the rows say and what it has."""
        rows = await self._rows.unfinished()
        living = [self.ledger.registry.add(row) for row in rows if row.state in lifecycle.LIVING]
        alive = set(await self.node.open(self._on_end, self._on_event, known=[one.record.id for one in living]))
        for one in living:
            record = one.record
            if record.state in lifecycle.ENDED:
                continue  # the node told of its end just now
            if (decided := fate(record, alive=record.id in alive, paused=self.node.paused(record.id), booted_at=self._booted_at)) is not None:
                record = self.ledger.move(one, decided.action, reason=decided.reason, detail=decided.detail)
                log.info("sandbox_recovered", sandbox=record.id, state=record.state, reason=record.reason)
            if record.state in (State.RUNNING, State.FROZEN):
                self._hold_on(record)
            self._watch(record)
        await self.policies.open(one for one in living if one.record.id in alive)
        failed = [one.record for one in living if one.record.state is State.FAILED]
        for row in [*failed, *(row for row in rows if row.state in lifecycle.ENDED)]:
            try:
                await self._remove(row)
            except Exception:
                # It must not keep the others from being served; the next server tries again.
                log.exception("sandbox_stays", sandbox=row.id)
        for id in alive - {row.id for row in rows}:
            log.warning("sandbox_without_row", sandbox=id)
            await self.node.remove(id)

    def leave(self) -> None:
        """The server is about to leave: nobody waits for room any more."""
        self._gate.close()

    async def close(self) -> None:
        """Stop watching; the sandboxes go on living."""
        self._alarm.close()
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def stop_all(self) -> None:
        """Stop every sandbox, since the whole installation ends."""

        async def stop(living: Living) -> None:
            async with living.changing:
                # A paused one is on the disk alone.
                if living.record.state is not State.PAUSED and Action.STOP in lifecycle.TABLE[living.record.state]:
                    await self._stop(living, Reason.REQUESTED, None)

        await asyncio.gather(*(stop(living) for living in list(self.ledger.registry)))

    # Making one

    async def create(
        self,
        actor: Actor,
        wanted: SandboxCreate,
        *,
        claim: Claim | None = None,
        facade: Mapping[str, Any] | None = None,
        build: bool = False,
        image_id: str | None = None,
    ) -> Record:
        """A running sandbox. `facade` is kept with it; `build`: one in which an image is built; `image_id`: what the node knows the image by, for the server's own that have no name for it.

        Raises `ImageNotFound`, `InvalidArgument`, `Conflict` (the name is taken), `QuotaExceeded`, `Unavailable` (no room for `wait` seconds), or what
        the node met; then nothing is left of it but its row.
        """
        began = time.perf_counter()
        if BUILD in wanted.tags and not build:
            raise InvalidArgument(f"the tag {BUILD} is for sandboxes in which images are built", hint="use another word", details={"field": "tags"})
        if wanted.egress is not None:
            await self.policies.check(wanted.egress)
        try:
            record = self._plan(actor, wanted, facade or {}, image_id)
        except ImageNotFound:
            if self.make_image is None or not await self.make_image(actor.project, wanted.image):
                raise
            record = self._plan(actor, wanted, facade or {}, image_id)
        image = self.node.image(record.image_id)
        living = self.ledger.registry.add(record, reserved=True)
        try:
            async with self._gate.turn(actor.project, wait=wanted.wait, memory=record.reserves), living.changing:
                queued = time.perf_counter() - began
                # Under the lock: a secret that gets another value from now on is sent to it afterwards.
                launch = await self.policies.launch(record, image)
                written = self.ledger.enter(living, claim)
                timing = await self._make(living, launch, written)
                timing = {"queue": queued, **timing, "total": time.perf_counter() - began}
                record = self.runs(living, actor=actor.key, timing=timing)
        except BaseException:
            if living.reserved:
                self.ledger.registry.drop(record.id)
            raise
        if self.on_created is not None and not build:
            try:
                await self.on_created(record)
            except BaseException:
                await asyncio.shield(self.delete(actor, record.id))
                raise
        return record

    def _plan(self, actor: Actor, wanted: SandboxCreate, facade: Mapping[str, Any], image_id: str | None) -> Record:
        image = self.node.image(image_id or self._shelf.image(actor.project, wanted.image))
        # Before anything is made aside for it.
        self._room(actor.project, wanted)
        image = next((sooner for ask in self.ready if (sooner := ask(actor.project, image, wanted)) is not None), image)
        if image.warm is not None and BUILD not in wanted.tags:
            wanted = fitting(wanted, image.warm)
            self._room(actor.project, wanted)
        id = new_id("sb")
        return Record(
            id=id,
            project=actor.project,
            name=wanted.name,
            image=wanted.image,
            image_id=image.id,
            state=State.CREATING,
            cpu=wanted.cpu,
            memory=wanted.memory,
            disk=wanted.disk,
            pids=wanted.pids,
            env=wanted.env,
            tags=wanted.tags,
            user=wanted.user or image.user,
            workdir=wanted.workdir or image.workdir,
            hostname=wanted.hostname or wanted.name or id,
            sudo=wanted.sudo,
            timeout=wanted.timeout,
            idle_timeout=wanted.idle_timeout,
            on_timeout=wanted.on_timeout,
            checkpoint_every=wanted.checkpoint_every,
            volumes=self._volumes.uses(actor.project, wanted.volumes),
            created_at=self._clock(),
            created_by=actor.key,
            egress=self.policies.default if wanted.egress is None else wanted.egress,
            secrets=tuple(wanted.secrets),
            previews=_exposure(wanted),
            freeze=wanted.freeze,
            reserve=wanted.reserve,
            facade=facade,
        )

    def _room(self, project: str, wanted: SandboxCreate) -> None:
        """Raises `InvalidArgument` for more than the machine has, `QuotaExceeded` for more than the project may have."""
        self._gate.capacity().check(cpu=wanted.cpu, memory=wanted.memory, disk=wanted.disk, reserve=wanted.reserve)
        self.quotas.check(project, Use(1, wanted.cpu, wanted.memory, wanted.disk))

    async def _make(self, living: Living, launch: Launch, written: Awaitable[None]) -> Timing:
        """Let the node make it, while its row is written. When either fails the sandbox has failed, with the reason."""
        record = living.record
        try:
            timing = await launch.create()
            try:
                await written
            except BaseException:
                await asyncio.shield(self.node.remove(record.id))
                raise
            return timing
        except BaseException as error:
            reason = Reason.IMAGE_ERROR if isinstance(error, ImageNotFound) else Reason.ENGINE_ERROR
            detail = error.message if isinstance(error, CorralError) else f"{type(error).__name__}: {error}".rstrip(": ")
            # The node leaves nothing of a create that failed.
            self.ledger.removed(self.ledger.move(living, Action.FAIL, reason=reason, detail=detail))
            raise

    def runs(self, living: Living, **how: Any) -> Record:
        """The node's answer was that it runs."""
        self.ledger.move(living, Action.RUN, **how)
        self._go_on(living)
        return living.record

    def _go_on(self, living: Living) -> None:
        """It runs from now on; or it has ended before the answer came that it does."""
        self._hold_on(living.record)
        self._watch(living.record)
        if (ended := living.overtaken) is not None:
            living.overtaken = None
            self._end(living, ended)
        else:
            self.on_running(living.record)

    def _used(self, project: str) -> Use:
        return quota.use(self.ledger.registry.of(project)) + Use(disk=self._shelf.mib(project) + self._volumes.mib(project))

    # Looking

    async def get(self, project: str, id_or_name: str) -> Record:
        """A living one, or one that has ended within the last hour (by its id)."""
        living = self.ledger.find(project, id_or_name)
        return living.record if living is not None else await self.ledger.ended(project, id_or_name)

    async def use(self, project: str, id_or_name: str, *, wake: bool = False) -> Record:
        """One whose processes and files can be asked for. `wake`: what is asked for needs its guest, so a paused one is resumed first.

        Raises `SandboxEnded`, `NotFound`, `InvalidState` while it is being created.
        """
        living = await self.ledger.use(project, id_or_name)
        if living.record.state is State.CREATING:
            raise InvalidState(f"the sandbox {living.record.id} is still being created", hint="wait until it is running")
        if wake and (living.pausing or living.record.state is State.PAUSED):
            await self.pauses.wake(living)
        return living.record

    async def page(self, project: str, *, states: frozenset[State], tags: Mapping[str, str], before: tuple[float, str] | None, limit: int) -> list[Record]:
        """Newest first."""
        return await self._rows.page(project, states=states, tags=tags, before=before, limit=limit)

    def in_state(self) -> dict[State, int]:
        """How many there are, of all projects. That a running one is frozen for a while is known to the node alone."""
        counts = dict.fromkeys(lifecycle.LIVING, 0)
        for living in self.ledger.registry:
            frozen = living.record.state is State.RUNNING and self.node.frozen(living.record.id)
            counts[State.FROZEN if frozen else living.record.state] += 1
        return counts

    def running(self) -> list[str]:
        """Ids of those that run, of all projects."""
        return [living.record.id for living in self.ledger.registry if living.record.state in (State.RUNNING, State.FROZEN)]

    @property
    def cores(self) -> float:
        """Of the machine."""
        return self._gate.capacity().cores

    def records(self) -> list[Record]:
        """Of all living ones, of all projects."""
        return [living.record for living in self.ledger.registry]

    def living_in(self, project: str) -> int:
        return sum(1 for _ in self.ledger.registry.of(project))

    # Changing

    async def update(self, actor: Actor, id_or_name: str, wanted: SandboxUpdate) -> Record:
        """Change what was given. Raises `Conflict` for a name that is taken."""
        living = await self.ledger.use(actor.project, id_or_name)
        changes: dict[str, Any] = {name: getattr(wanted, name) for name in wanted.model_fields_set}
        for name in ("tags", "on_timeout", "on_request"):
            if name in changes and changes[name] is None:
                raise InvalidArgument(f"{name}: null is not a value of it", hint="leave it out to keep it as it is", details={"field": name})
        if "on_request" in changes:
            changes["previews"] = replace(living.record.previews, starts=changes.pop("on_request") == "start")
        if "timeout" in changes and living.record.state in lifecycle.ACTIVE:
            changes["deadline"] = deadlines.deadline(self._clock(), changes["timeout"])
        if not changes:
            return living.record
        record = self.ledger.amend(living, actor=actor.key, **changes)
        self._watch(record)
        return record

    async def extend(self, actor: Actor, id_or_name: str, seconds: float) -> Record:
        """Move its deadline to at least `seconds` from now; one without a deadline has none afterwards."""
        living = await self.ledger.use(actor.project, id_or_name)
        if living.record.state not in lifecycle.ACTIVE:
            raise InvalidState(f"a sandbox that is {living.record.state} has no deadline", hint="start it first")
        later = deadlines.extended(self._clock(), living.record.deadline, seconds)
        if later == living.record.deadline:
            return living.record
        record = self.ledger.amend(living, actor=actor.key, deadline=later)
        self._watch(record)
        return record

    async def stop(self, actor: Actor, id_or_name: str) -> Record:
        """End its processes and keep its disk. Nothing happens when it is stopped already."""
        living = await self.ledger.use(actor.project, id_or_name)
        async with living.changing:
            return await self._stop(living, Reason.REQUESTED, actor.key)

    async def start(self, actor: Actor, id_or_name: str) -> Record:
        """Start a stopped one on its disk. Nothing happens when it is running."""
        return await self.begin(await self.ledger.use(actor.project, id_or_name), actor.key)

    async def begin(self, living: Living, actor: str | None) -> Record:
        """As `start`, of one that was found. `actor` is None when nobody asked by name: a request came."""
        began = time.perf_counter()
        async with living.changing:
            record = living.record
            if record.state in (State.RUNNING, State.FROZEN):
                return record
            lifecycle.after(record.state, Action.RUN)
            with self.quotas.room(record.project, Use(cpu=record.cpu, memory=record.memory)):
                launch = await self.policies.launch(record, self.node.image(record.image_id))
                async with self._gate.turn(record.project, wait=0, memory=record.reserves):
                    queued = time.perf_counter() - began
                    living.overtaken = None
                    timing = {"queue": queued, **await launch.start(), "total": time.perf_counter() - began}
                    return self.runs(living, actor=actor, timing=timing)

    @asynccontextmanager
    async def hold(self, project: str, id_or_name: str) -> AsyncGenerator[Living]:
        """A sandbox that nobody else stops, starts or ends meanwhile (it may still end by itself)."""
        living = await self.ledger.use(project, id_or_name)
        async with living.changing:
            yield living

    async def restart(self, living: Living, meanwhile: Callable[[], Awaitable[None]], *, why: str, actor: Actor) -> Record:
        """Do something with a held sandbox's disk while it is stopped, and have it run again if it ran; its deadline stays. It runs again, too, when that fails."""
        record = living.record
        if record.state is State.STOPPED:
            await meanwhile()
            return record
        # What it gives up by stopping is kept for it.
        with self.quotas.keep(record.project, Use(cpu=record.cpu, memory=record.memory)), self._gate.keep(record.reserves):
            await self._stop(living, Reason.REQUESTED, actor.key, detail=why)
            try:
                await meanwhile()
            finally:
                launch = await self.policies.launch(record, self.node.image(record.image_id))
                living.overtaken = None
                timing = await launch.start()
                record = self.runs(living, actor=actor.key, timing=timing, deadline=record.deadline)
        return record

    async def delete(self, actor: Actor, id_or_name: str) -> Record:
        """End it and remove its disk. Nothing happens when it has ended already."""
        living = self.ledger.find(actor.project, id_or_name)
        if living is None:
            record = await self.ledger.ended(actor.project, id_or_name)
            return record if record.removed else await self._remove(record)
        async with living.changing:
            return await self._terminate(living, Reason.REQUESTED, actor.key)

    async def delete_many(self, actor: Actor, ids_or_names: Iterable[str]) -> list[Record]:
        """End many, some at a time. Raises `NotFound` before any is ended; then all are tried, and the first failure is raised at the end."""
        turns = asyncio.Semaphore(AT_ONCE)

        async def one(id: str) -> Record:
            async with turns:
                return await self.delete(actor, id)

        wanted = dict.fromkeys([(await self.get(actor.project, ref)).id for ref in ids_or_names])
        results = await asyncio.gather(*(one(id) for id in wanted), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return [result for result in results if isinstance(result, Record)]

    def tagged(self, project: str, tags: Mapping[str, str]) -> Sequence[str]:
        """Ids of the living ones with these tags."""
        return [record.id for record in self.ledger.registry.of(project) if tags.items() <= record.tags.items()]

    # Ends

    async def _stop(self, living: Living, reason: Reason, actor: str | None, *, detail: str | None = None) -> Record:
        if living.record.state is State.STOPPED:
            return living.record
        lifecycle.after(living.record.state, Action.STOP)
        await self.node.stop(living.record.id)
        # It may have ended by itself in the meantime, which was written down then.
        if Action.STOP in lifecycle.TABLE[living.record.state]:
            self.ledger.move(living, Action.STOP, reason=reason, detail=detail, actor=actor)
        self._freed(living.record)
        return living.record

    async def _terminate(self, living: Living, reason: Reason, actor: str | None) -> Record:
        if living.record.state in lifecycle.ENDED:
            return living.record
        record = self.ledger.move(living, Action.TERMINATE, reason=reason, actor=actor)
        self.on_gone(record.id)
        record = living.record = await self._remove(record)
        return record

    async def _remove(self, record: Record) -> Record:
        """Remove an ended one from the node; if that fails it is tried again at the next delete and the next start of the server."""
        self._alarm.set(record.id, None)
        self.policies.forget(record.id)
        await self.node.remove(record.id)
        self._gate.look()
        if self.on_removed is not None:
            self.later(self.on_removed(record))
        return self.ledger.removed(record)

    async def _on_end(self, ended: Ended) -> None:
        """The node tells that one ended by itself. Nothing is awaited here: whoever changes it now may be waiting for the node."""
        if (living := self.ledger.registry.get(ended.id)) is not None:
            self._end(living, ended)

    def _end(self, living: Living, ended: Ended) -> None:
        action = lifecycle.on_own_end(living.record.state, disk_kept=ended.disk_kept)
        if action is None or action is Action.FAIL:
            # Not running, or being made or started: then the node's answer tells, or comes late.
            living.overtaken = ended
            return
        record = self.ledger.move(living, action, reason=ended.reason, detail=ended.detail)
        log.info("sandbox_ended", sandbox=record.id, reason=record.reason, detail=record.detail)
        self._freed(record)
        if action is Action.TERMINATE:
            self.later(self._remove(record))

    def _freed(self, record: Record) -> None:
        self.on_gone(record.id)
        self._alarm.set(record.id, None)
        self._gate.look()

    def _on_event(self, id: str, kind: str, data: Mapping[str, Any]) -> None:
        """Something happened inside a sandbox."""
        living = self.ledger.registry.get(id)
        if living is None or kind in (lifecycle.EVENT[Action.FREEZE], lifecycle.EVENT[Action.THAW]):
            return
        if self.policies.worth_telling(id, kind, data):
            self.ledger.log.note(kind, living.record.project, sandbox=id, actor="guest", data=data)
        if kind == "egress.approval":
            self.on_approval(living.record, data)
        if kind == "process.exited":
            living.exits += 1
            self.on_exit(living, living.exits)

    # Time

    def _look(self, record: Record) -> deadlines.Due:
        now = self._clock()
        if record.state not in (State.RUNNING, State.FROZEN):
            return deadlines.Due()
        idle_since = now if record.idle_timeout is None else now - self._idle_for(record.id)
        return deadlines.look(now, deadline=record.deadline, idle_timeout=record.idle_timeout, idle_since=idle_since)

    def _idle_for(self, id: str) -> float:
        """Seconds since its last activity; 0 when it has just ended, of which the node is about to tell."""
        try:
            return time.monotonic() - self.node.last_activity(id)
        except (InvalidState, SandboxEnded):
            return 0.0

    def _hold_on(self, record: Record) -> None:
        """It is held for as long as was asked for, whoever was the server then."""
        if (left := (record.previews.held_until or 0.0) - self._clock()) > 0:
            with suppress(InvalidState, SandboxEnded):  # it has just ended
                self.node.hold(record.id, left)

    def _watch(self, record: Record) -> None:
        """Set its alarm."""
        due = self._look(record)
        self._alarm.set(record.id, self._clock() if due.reason is not None else due.at)

    def _ring(self, id: str) -> None:
        living = self.ledger.registry.get(id)
        if living is None:
            return
        if self._look(living.record).reason is None:
            self._watch(living.record)
        else:
            self.later(self._expire(living))

    async def _expire(self, living: Living) -> None:
        async with living.changing:
            due = self._look(living.record)
            if due.reason is None:
                self._watch(living.record)
                return
            match lifecycle.on_deadline(living.record.on_timeout):
                case Action.STOP:
                    await self._stop(living, due.reason, None)
                case Action.PAUSE:
                    try:
                        await self.pauses.save(living, due.reason, None)
                    except CorralError as error:
                        # Its time is up all the same; at least its disk is kept.
                        await self._stop(living, due.reason, None, detail=f"it could not be paused: {error.message}")
                case _:
                    await self._terminate(living, due.reason, None)

    def later(self, doing: Awaitable[object]) -> None:
        """Do it in the background; the server's end waits for it."""

        async def do() -> None:
            try:
                await doing
            except Exception:
                log.exception("sandbox_task_failed")

        task = asyncio.get_running_loop().create_task(do())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _exposure(wanted: SandboxCreate) -> Exposure:
    public = () if wanted.public_ports == "all" else tuple(sorted(set(wanted.public_ports)))
    only = None if wanted.ports is None else tuple(sorted(set(wanted.ports)))
    return Exposure(public, every=wanted.public_ports == "all", starts=wanted.on_request == "start", only=only)
