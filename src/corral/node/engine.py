"""The engine: in which order what is done. Each step is in the module named for it.

open      places → runsc → control groups → holder, network → adopt what lives → sweep what belongs to nobody → self-test → pool
claim     take a member → limits → wake → egress policy → record → disk → root
restore   take a prepared member → the same → volumes → memory → limits of processor time
end       kill → unmount root → detach disk → destroy the member → record → slot given back

It is long since all of these orders are here, and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import resource
import time
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import structlog

from corral.errors import CorralError, InternalError, InvalidState, SetupError, Unavailable
from corral.node import death, holder_client, record, runsc
from corral.node.box import RunscBox
from corral.node.cgroup import Groups, find_hierarchies
from corral.node.holder_client import HolderClient, HolderError
from corral.node.interface import Box, BoxSpec, Disks, Ended, OnEnd, Rootfs, Timing, VolumeUse
from corral.node.limits import limits, saving
from corral.node.members import Member, Members, runsc_root
from corral.node.memory import Needs, Returning, Still
from corral.node.network import Network, Watcher
from corral.node.place import Place
from corral.node.pool import Pool
from corral.node.record import Record
from corral.node.runsc import Runsc
from corral.places import Places
from corral.schema.egress import EgressPolicy
from corral.schema.sandbox import Reason

SETTLE_TIMEOUT = 60.0
"""Seconds for ends that are under way when the server leaves."""
DISK_TIMEOUT = 60.0
PREPARED = 8
"""Members without anything in them that wait for memories; half of the pool at most."""
TIGHTEN_AGAIN = 1.0
"""Seconds between two attempts to give a group its limits back."""
ASKED = (Reason.REQUESTED, "the server was killed while it was ending it")
"""What is told of a box that somebody asked to end."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class EngineSettings:
    """What can be chosen. `pool` is the number of ready members."""

    agent: Path
    pool: int
    runsc: Path | None = None
    platform: str = "systrap"
    resolvers: tuple[str, ...] = ()
    """DNS servers for sandboxes' names, `ADDRESS[:PORT]`; none: this machine's."""


@dataclass(frozen=True)
class Parts:
    """What there is once the engine is open."""

    runsc: Runsc
    groups: Groups
    members: Members
    pool: Pool
    prepared: Pool


class RunscEngine:
    """Implements `interface.Engine` with gVisor. One for each installation at a time: the holder takes only one server."""

    def __init__(self, places: Places, *, settings: EngineSettings, disks: Disks, rootfs: Rootfs, watcher: Watcher | None = None) -> None:
        self._places = places
        self._settings = settings
        self._disks = disks
        self._rootfs = rootfs
        self._holder = self.holder = HolderClient(on_lost=self._holder_lost)
        self.network = Network(places, self._holder, resolvers=settings.resolvers, watcher=watcher)
        self._boxes: dict[str, RunscBox] = {}
        self._claiming: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._on_death: OnEnd | None = None
        self._leaving = False
        self._ends_all = False
        """All slots go with the network then."""
        self._holder_anew = False
        self._parts: Parts | None = None

    # Opening and leaving

    async def open(self, on_death: OnEnd) -> list[Box]:
        """Ready the engine. Boxes of an earlier server that still live are returned; `on_death` is told of those that ended meanwhile.

        Raises `SetupError` when something the engine needs is missing.
        """
        self._on_death = on_death
        for directory in (self._places.run, self._places.members, self._places.boxes, runsc_root(self._places), self._places.logs):
            # 0700: runsc's control sockets have no other guard.
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Five descriptors for each member; the usual limit is 1,024.
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, hard), hard))
        if not self._settings.agent.is_file():
            raise SetupError(f"the guest agent {self._settings.agent} is missing", hint="install Corral again: its build makes it")
        found = await asyncio.to_thread(runsc.find, self._places, self._settings.runsc)
        groups = Groups(find_hierarchies(), self._places.tag)
        groups.open()
        # When an earlier server left boxes, one that we must start means that theirs was lost, and with it what it knew of their ends.
        self._holder_anew = await self._connect()
        try:
            self._parts = await self._assemble(found, groups)
        except BaseException:
            await self.network.close()
            raise
        return list(self._boxes.values())

    async def _assemble(self, found: Runsc, groups: Groups) -> Parts:
        await self.network.open()
        settings = self._settings
        members = Members(self._places, runsc=found, agent=settings.agent, platform=settings.platform, groups=groups, holder=self._holder, network=self.network)
        await self._adopt(members)
        await self._sweep(members)
        await self.network.sweep()
        size = settings.pool
        pool = Pool(members.make, members.destroy, self._holder, size=size, sleep=found.burns_when_idle)
        prepared = Pool(members.prepare, members.destroy, self._holder, size=min(PREPARED, size // 2), sleep=found.burns_when_idle)
        # The first member is the self-test of the whole way.
        first = await members.make(background=False, check=True)
        if size:
            pool.add(first)
        else:
            await members.destroy(first)
        pool.start(then=prepared)
        return Parts(found, groups, members, pool, prepared)

    @property
    def burns_when_idle(self) -> bool:
        """Whether awake idle boxes cost processor time with the runsc in use, so that they ought to be frozen."""
        return self._open.runsc.burns_when_idle

    @property
    def _open(self) -> Parts:
        if self._parts is None:
            raise InternalError("the engine is not open")
        return self._parts

    async def close(self) -> None:
        """Leave. Claimed boxes go on living with the holder, for the next server; waiting members end."""
        self._leaving = True
        await self._settle()
        for box in self._boxes.values():
            box.detach()
            box.member.release()
        self._boxes.clear()
        await self.network.close()
        self._holder.close()

    async def shutdown(self) -> None:
        """End everything of this installation but its disks: boxes, pool, holder, groups, run-time files."""
        self._leaving = self._ends_all = True
        await self._settle()
        await asyncio.gather(*(self.kill(box) for box in list(self._boxes)))
        await self._sweep(self._open.members)
        await self.network.shutdown()
        await self._holder.shutdown()
        if not self._open.groups.remove():
            raise InternalError(f"the control groups {self._places.tag} are still in use", hint="look into their cgroup.procs")
        self._open.members.remove_root()
        # Why sandboxes have ended, and what a killed server was just writing.
        for file in (*self._places.boxes.glob("*.ended"), *self._places.boxes.glob(".*")):
            file.unlink(missing_ok=True)
        for directory in (self._places.members, self._places.boxes):
            directory.rmdir()
        with contextlib.suppress(OSError):
            # Whoever else keeps something there removes it.
            self._places.run.rmdir()

    async def _settle(self) -> None:
        """End the pool, and wait for what is under way."""
        await asyncio.gather(self._open.pool.close(), self._open.prepared.close())
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=SETTLE_TIMEOUT)

    async def _connect(self) -> bool:
        """Whether a holder had to be started."""
        path = self._places.holder_socket
        try:
            await self._holder.connect(path)
            return False
        except (FileNotFoundError, ConnectionError):
            await holder_client.start(path, self._places.logs / "holder.log")
            await self._holder.connect(path)
            return True

    def _holder_lost(self) -> None:
        if not self._leaving:
            log.error("the holder went away; starting another")
            self._run(self._replace_holder())

    async def _replace_holder(self) -> None:
        """Boxes live on without their parent. A new holder watches them as strangers, and gets their descriptors."""
        for delay in (0.1, 1, 5, 30, 60):
            try:
                await self._connect()
                break
            except (CorralError, OSError) as error:
                log.error("another holder could not be started", error=str(error), retry_in=delay)
                await asyncio.sleep(delay)
        else:
            log.critical("there is no holder: sandboxes go on, but none can be created, and none would survive the end of this server")
            return
        for member in [*(box.member for box in self._boxes.values() if box.ending is None), *self._open.pool.waiting(), *self._open.prepared.waiting()]:
            if member.control.fileno() >= 0:
                await self._holder.keep(member.id, member.descriptors)

    # Finding again

    async def _adopt(self, members: Members) -> None:
        try:
            records = list(record.read_all(self._places.boxes))
        except (ValueError, KeyError, TypeError) as error:
            raise SetupError(
                f"a record in {self._places.boxes} can't be understood: {error}", hint="start the version of Corral that wrote it, or remove it"
            ) from error
        for found in records:
            try:
                member = await members.adopt(found.member, found.identity, found.slot, found.needs)
            except ProcessLookupError:
                await self._bury(members, found)
            except HolderError as error:
                await self._bury(members, found, lost=f"its sockets went with an earlier holder: {error}")
            else:
                try:
                    await self._attach(found.spec)
                except (CorralError, OSError) as error:
                    member.release()
                    await self._bury(members, found, lost=f"its disk can't be found again: {error}")
                else:
                    record.keep_on(self._places.boxes, found.spec.id)
                    if member.slot is not None:
                        self.network.readmit(member.slot, found.spec.id, found.spec.egress, found.generation)
                    self._enter(RunscBox(found.spec, member, disk_used=self._disks.used))
        for id in record.ended(self._places.boxes):
            # The row may not say so yet.
            if (why := record.why_ended(self._places.boxes, id)) is not None:
                await self._tell(Ended(id, *why, disk_kept=True))

    async def _bury(self, members: Members, found: Record, *, lost: str | None = None) -> None:
        """A box that ended while no server was there or, with `lost`, can't be reached any more."""
        places = members.places(found.member)
        if lost is not None:
            reason, detail = Reason.ENGINE_ERROR, lost
        elif (why := record.why_ended(self._places.boxes, found.spec.id)) is not None:
            reason, detail = why
        else:
            pids = [pid for pid in (found.identity.pid, found.identity.gofer) if pid]
            await self._holder.watch(pids)
            exits = [self._holder.exit_of(pid) for pid in pids]
            await death.ends(exits)
            seen = death.evidence(exits, members.group(found.member), places)
            reason, detail = death.explain(replace(seen, holder_lost=self._holder_anew))
        # It is told with the others that have ended.
        record.end(self._places.boxes, found.spec.id, reason, detail)
        await members.kill_stranger(found.member)
        await self._holder.forget([found.identity.pid, found.identity.gofer])
        await self._clear_away(members, found.member, found.spec.id)

    async def _sweep(self, members: Members) -> None:
        """Remove what belongs to nobody: members without a record, made or half made by an earlier server."""
        held = (await self._holder.list()).names
        ours = {box.member.id for box in self._boxes.values()}
        await asyncio.gather(*(self._remove_stranger(members, stranger) for stranger in (members.known() | held) - ours))

    async def _remove_stranger(self, members: Members, stranger: str) -> None:
        log.info("removing a member that belongs to nobody", member=stranger)
        await members.kill_stranger(stranger)
        await self._clear_away(members, stranger, None)

    # Claiming

    async def claim(self, spec: BoxSpec, secrets: Mapping[str, str] | None = None) -> tuple[Box, Timing]:
        """A running sentry with the sandbox's root mounted, its agent awake but not yet claimed. Undoes everything when it fails.

        `secrets`: values of those that its egress policy uses; they are written nowhere.
        """
        return await self._occupy(spec, secrets or {}, None)

    async def restore(self, spec: BoxSpec, secrets: Mapping[str, str], memory: Returning) -> tuple[RunscBox, Timing]:
        """As `claim`, and what runs in it is what was saved: its agent goes on where it was. Its disk must be the one of that moment.

        Raises `Unsupported` when the memory needs what is not here. `restore` in the timing: seconds for the memory alone.
        """
        return await self._occupy(spec, secrets, memory)

    async def _occupy(self, spec: BoxSpec, secrets: Mapping[str, str], memory: Returning | None) -> tuple[RunscBox, Timing]:
        if spec.id in self._boxes or spec.id in self._claiming:
            raise InvalidState(f"sandbox {spec.id} is running already")
        began = time.perf_counter()
        self._claiming.add(spec.id)
        try:
            member, cold = await self._member(memory)
            made = restored = time.perf_counter()
            try:
                # A memory is read in at full speed, by the sentry alone.
                member.group.limit(limits(spec) if memory is None else replace(limits(spec), cpu=None))
                # Awake before all else: it comes to itself on another processor meanwhile, and looks at nothing before it is told to.
                member.sentry.wake()
                await self._admit(member, spec, secrets)
                record.keep_on(self._places.boxes, spec.id)
                ready = time.perf_counter()
                writable = await self._attach(spec)
                self._rootfs.mount_root(member.places.root, spec.image.layers, writable)
                mounted = restored = time.perf_counter()
                if memory is not None:
                    await memory.mount_volumes(member.places.volumes)
                    await self._return(member, memory.place)
                    restored = time.perf_counter()
                    member.group.limit(limits(spec))
            except BaseException:
                await asyncio.shield(self._abandon(member, spec.id))
                raise
            box = RunscBox(spec, member, disk_used=self._disks.used)
            self._enter(box)
        finally:
            self._claiming.discard(spec.id)
        timing = {
            "start": made - began if cold else 0.0,
            "claim": ready - made + (0.0 if cold else made - began),
            "rootfs": mounted - ready,
            "cold": float(cold),
        }
        return box, timing if memory is None else {**timing, "restore": restored - mounted}

    async def _member(self, memory: Returning | None) -> tuple[Member, bool]:
        """A member to be had at once, or one made for the purpose."""
        parts = self._open
        if memory is not None and memory.needs != parts.members.programs.needs:
            return await parts.members.prepare(background=False, needs=memory.needs), True
        pool = parts.pool if memory is None else parts.prepared
        member = pool.take()
        return (await pool.make(), True) if member is None else (member, False)

    async def _return(self, member: Member, place: Place) -> None:
        with place.read() as files:
            async with self._open.members.talk(member) as calls:
                await calls.restore(files)

    # Standing still

    @asynccontextmanager
    async def still(self, id: str) -> AsyncGenerator[Still]:
        """For as long as it lasts a box' guest stands still: none of its tasks runs. It goes on in any case, unless the box is ended meanwhile.

        What its sentry writes then counts for its group: the limit is higher until `tighten`, or until it goes on by itself after an error.
        """
        box = self._living(id)
        member = box.member
        member.group.limit(saving(box.spec))
        record.stand_still(self._places.boxes, id)
        async with self._open.members.talk(member) as calls:
            await calls.pause()
            try:
                yield Still(calls)
            finally:
                if box.ending is None:
                    await asyncio.shield(self.go_on(id))

    async def go_on(self, id: str) -> None:
        """Let a guest go on that stands still. Not for one that doesn't: its sentry would end."""
        # A connection of its own: that of a save that took too long is closed.
        async with self._open.members.talk(self._living(id).member) as calls:
            await calls.resume()
        record.go_on(self._places.boxes, id)

    def tighten(self, id: str) -> None:
        """The limits are what they were, if it still lives: at once, or as soon as it uses no more than they allow."""
        box = self._boxes.get(id)
        if box is not None and not _tightened(box):
            self._run(self._tighten_later(box))

    async def _tighten_later(self, box: RunscBox) -> None:
        log.warning("a sandbox uses more memory than it may have, and keeps it for the moment", sandbox=box.id)
        while not self._leaving and not _tightened(box):  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(TIGHTEN_AGAIN)

    @property
    def own_needs(self) -> Needs:
        """What the memory of a sandbox started now will need."""
        return self._open.members.programs.needs

    def needs(self, id: str) -> Needs | None:
        """What a box' memory will need; None: it is of an earlier Corral, which did not say."""
        return self._living(id).member.needs

    def keep_programs(self, needs: Needs, id: str) -> None:
        """Have what a box' memory needs, for as long as that is kept. Blocks, the first time."""
        self._open.members.programs.keep(needs, self._living(id).member.places.agent)

    def _living(self, id: str) -> RunscBox:
        box = self._boxes.get(id)
        if box is None or box.ending is not None:
            raise InvalidState(f"sandbox {id} is not running", hint="start it first")
        return box

    async def _admit(self, member: Member, spec: BoxSpec, secrets: Mapping[str, str]) -> None:
        """Put its egress policy in force, and write down what a later server must know of it."""
        generation = await self.network.admit(member.slot, spec.id, spec.egress, secrets)
        slot = None if member.slot is None else member.slot.index
        fresh = Record(member.id, member.sentry.identity, spec, time.time(), slot=slot, generation=generation, needs=member.needs)
        record.write(self._places.boxes, fresh)

    async def set_egress(self, id: str, policy: EgressPolicy, secrets: Mapping[str, str]) -> None:
        """Change what a box may reach; connections that it no longer may have are cut."""
        box = self._living(id)
        spec = replace(box.spec, egress=policy)
        await self._admit(box.member, spec, secrets)
        box.spec = spec

    def set_volumes(self, id: str, volumes: tuple[VolumeUse, ...]) -> BoxSpec:
        """Remember what a box has by now, for a later server; returns what it is."""
        box = self._living(id)
        box.spec = replace(box.spec, volumes=volumes)
        record.change(self._places.boxes, box.spec)
        return box.spec

    def traffic(self, id: str) -> tuple[int, int]:
        """Bytes that a box has sent and received."""
        box = self._boxes.get(id)
        return (0, 0) if box is None or box.member.slot is None else self.network.traffic(box.member.slot)

    async def _attach(self, spec: BoxSpec) -> Path:
        try:
            async with asyncio.timeout(DISK_TIMEOUT):
                return await self._disks.attach(spec.id, spec.disk, seed=spec.image.seed)
        except TimeoutError:
            raise Unavailable(
                f"the disk of sandbox {spec.id} was not there within {DISK_TIMEOUT:g} s", hint="look at the load of the pool's device, and try again"
            ) from None

    async def _abandon(self, member: Member, id: str) -> None:
        await member.sentry.kill()
        await self._clear_away(self._open.members, member.id, id)
        await self._open.members.destroy(member)

    def _enter(self, box: RunscBox) -> None:
        """From here on its end is noticed."""
        self._boxes[box.id] = box
        for pid in box.member.sentry.pids:
            self._holder.exit_of(pid).add_done_callback(lambda _: self._ended_by_itself(box))

    # Ending

    async def kill(self, id: str, *, keep_disk: bool = True, why: tuple[Reason, str | None] = ASKED) -> None:
        """End a box. One that is not there, or ends already, is no error. Without `keep_disk` its disk is deleted, and nothing written out before.

        `why`: what the next server tells of it if this one is killed meanwhile.
        """
        box = self._boxes.get(id)
        if box is not None:
            if box.ending is None or (box.ending.done() and self._boxes.get(id) is box):
                # The second time, a first attempt has failed.
                record.end(self._places.boxes, id, *why)
                box.ending = self._run(self._take_apart(box, keep_disk=keep_disk))
            await asyncio.shield(box.ending)
        if not keep_disk:
            await self._disks.remove(id)
            self.forget(id)

    def forget(self, id: str) -> None:
        """Nobody will ask why it has ended."""
        record.keep_on(self._places.boxes, id)

    def ended(self) -> list[str]:
        """Those of which it is known why they have ended, for whoever asks later."""
        return record.ended(self._places.boxes)

    def _ended_by_itself(self, box: RunscBox) -> None:
        if box.ending is None and self._boxes.get(box.id) is box:
            box.ending = self._run(self._mourn(box))

    async def _mourn(self, box: RunscBox) -> None:
        exits = [self._holder.exit_of(pid) for pid in box.member.sentry.pids]
        await death.ends(exits)
        evidence = death.evidence(exits, box.group, box.member.places)
        reason, detail = death.explain(evidence)
        log.warning("sandbox ended by itself", sandbox=box.id, reason=reason.value, detail=detail, status=evidence.status)
        record.end(self._places.boxes, box.id, reason, detail)
        await self._take_apart(box, keep_disk=True)
        await self._tell(Ended(box.id, reason, detail, disk_kept=True))

    async def _take_apart(self, box: RunscBox, *, keep_disk: bool) -> None:
        await box.member.sentry.kill()
        box.detach()
        if not keep_disk:
            # Before its overlay is unmounted, which would write everything out.
            await self._disks.remove(box.id)
        await self._clear_away(self._open.members, box.member.id, box.id)
        box.member.release()
        await self._holder.forget(box.member.sentry.pids)
        if box.member.slot is not None and not self._ends_all:
            self.network.let_go(box.member.slot, box.id)
        del self._boxes[box.id]

    async def _clear_away(self, members: Members, member: str, box: str | None) -> None:
        """Everything a dead member leaves, and a box' root and record. Order matters: the overlay lies on the disk and in the member's root."""
        await asyncio.to_thread(self._rootfs.unmount_root, members.places(member).root)
        if box is not None:
            await self._disks.detach(box)
        await members.remove(member)
        if box is not None:
            record.remove(self._places.boxes, box)

    async def _tell(self, ended: Ended) -> None:
        if self._on_death is not None:
            await self._on_death(ended)

    def _run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("work in the background failed", error=repr(error), exc_info=error)


def _tightened(box: RunscBox) -> bool:
    """Whether it has its limits, or needs none any more."""
    if box.ending is not None:
        return True
    try:
        box.group.limit(limits(box.spec))
    except OSError as error:
        if error.errno != errno.EBUSY:  # cgroup v1: more is in use, and can't be taken back now
            raise
        return False
    return True
