"""A node: the machine that runs sandboxes, as the control plane sees it. Puts the engine, the disks and the guests together; says the order.

create    engine.claim (member, limits, disk, root) → hello → claim → running; of a snapshot with memory as `warm` says
stop      engine.kill; disk and output stay
start     as create, on the same disk
pause     pauses.pause (memory and disk saved, sentry ended); resume as it says
remove    stop, then delete disk and output

It is long since it is all that the control plane may ask of a node; what is asked is done elsewhere, in the module that each method names.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import shutil
import time
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import structlog

from corral.agent_binary import agent_binary
from corral.errors import CorralError, FileNotFound, InvalidArgument, InvalidState, NotFound, SandboxEnded, Unavailable, Unsupported
from corral.ids import is_id
from corral.images import Catalog, StoredImage
from corral.images.library import Library
from corral.net.authority import Authority
from corral.node import identity, metadata, record, rootfs, spool, trust
from corral.node.box import RunscBox
from corral.node.differences import Differences
from corral.node.disks import PoolDisks
from corral.node.engine import EngineSettings, RunscEngine
from corral.node.files import Files
from corral.node.forks import Forks
from corral.node.holder_client import HolderClient
from corral.node.identity import returned
from corral.node.idler import Crowd
from corral.node.interface import BoxSpec, Child, Ended, ImageSpec, Moment, OnEnd, Timing, VolumeUse
from corral.node.memory import Memories
from corral.node.merging import OnConflict, carry_out
from corral.node.moment import Moments
from corral.node.network import Watcher
from corral.node.outward import Outward
from corral.node.pauses import Pauses
from corral.node.pool import default_size
from corral.node.processes import ProcessBook
from corral.node.running import Hooks, OnEvent, Running
from corral.node.snapshots import Snapshots, StoredSnapshot
from corral.node.start import encoded
from corral.node.urpc import UrpcError
from corral.node.volumes import Volumes, name_of
from corral.node.warm import WarmSnapshots
from corral.places import Places
from corral.schema.egress import Approval, Decision, EgressPolicy, Flow, Flows, Verdict
from corral.schema.observe import LogLine, Sample
from corral.schema.sandbox import Reason
from corral.schema.snapshot import Change, Diff, MergeConflict
from corral.threads import in_thread
from corral.wire import messages, requests

FLOWS = 1000
"""Of the flow log, read at once for those who follow it."""
LOOK_AGAIN = 2.0
"""Seconds after which the kernel is asked for connections that are over, while somebody follows."""
SILENCE = 5.0
"""Seconds between the end of a sandbox's link and the end of its sentry; it takes milliseconds unless the agent closed the link itself."""

STILL = 3.0
"""Seconds for an agent's hello, after which it is taken to stand still."""

_FILES_A_TIME = 200
"""Files whose metadata is read before others have their turn."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class NodeSettings:
    """`pool`: ready members (None: by memory). `freeze`: whether idle sandboxes are frozen; `auto` where the runsc in use burns CPU when idle."""

    runsc: Path | None = None
    agent: Path | None = None
    pool: int | None = None
    platform: str = "systrap"
    freeze: Literal["auto", "always", "never"] = "auto"
    resolvers: tuple[str, ...] = ()
    """DNS servers for sandboxes' names, `ADDRESS[:PORT]`; none: this machine's."""
    mirrors: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    """Addresses by image registry, which are asked first."""


class Node:
    """Everything about sandboxes that needs the machine. Ids are given by the caller."""

    def __init__(self, places: Places, *, settings: NodeSettings | None = None) -> None:
        self._places = places
        self._settings = settings or NodeSettings()
        size = default_size() if self._settings.pool is None else self._settings.pool
        self._disks = PoolDisks(places, stock=max(16, min(size, 128)))
        engine = EngineSettings(
            agent=self._settings.agent or agent_binary(),
            runsc=self._settings.runsc,
            pool=size,
            platform=self._settings.platform,
            resolvers=self._settings.resolvers,
        )
        self._outward = Outward(places.spool, alive=self.running, on_event=self._event, on_denied=self._denied)
        watcher = Watcher(self._outward.on_flows, self._outward.on_approval)
        self._engine = RunscEngine(places, settings=engine, disks=self._disks, rootfs=rootfs, watcher=watcher)
        self._catalog = Catalog(places)
        self.library = Library(places, self._catalog, mirrors=self._settings.mirrors)
        self._authority = Authority(places.keys)
        memories = Memories(places)
        self.snapshots = Snapshots(places, self._disks, memories)
        self.volumes = Volumes(places, self._disks.pool)
        self._pauses = Pauses(places, self._engine, self._disks, self.volumes, memories)
        moments = Moments(self._engine, self._disks, self._pauses)
        self._forks = Forks(places, self._engine, self._disks, self.volumes, moments)
        self._warm = WarmSnapshots(places, self._engine, self.snapshots, memories, moments)
        self._differences = Differences(places, self._disks, self.snapshots)
        self._running: dict[str, Running] = {}
        self._cores = os.cpu_count() or 1
        self._crowd = Crowd(self._cores)
        self._books: dict[str, ProcessBook] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._hooks = Hooks(on_event=lambda _id, _kind, _data: None, on_garbage=self._garbage, on_silence=self._silent)
        self._on_end: OnEnd | None = None

    # Opening and leaving

    async def open(self, on_end: OnEnd, on_event: OnEvent | None = None, *, known: Collection[str] | None = None) -> list[str]:
        """Ready the node; returns the ids of sandboxes found alive from an earlier server.

        `known`: the sandboxes that there are; whatever is found of others, alive or not, is removed. None: all are kept.
        """
        self._on_end = on_end
        if on_event is not None:
            self._hooks = Hooks(on_event=on_event, on_garbage=self._garbage, on_silence=self._silent)
        await self._disks.open(known)
        await asyncio.to_thread(self._differences.open)
        await self.snapshots.open()
        await self.volumes.open()
        await self._pauses.open(None if known is None else {*known, *self.snapshots.warm()})
        await asyncio.to_thread(self._forks.sweep)
        await asyncio.to_thread(self.library.open)
        boxes = [box for box in await self._engine.open(self._died) if isinstance(box, RunscBox)]
        if known is not None:
            await self._remove_strangers([box.id for box in boxes if box.id not in known], known)
            boxes = [box for box in boxes if box.id in known]
        adopted = [id for id in await asyncio.gather(*(self._adopt(box) for box in boxes)) if id is not None]
        await self.volumes.settle()
        await self._pauses.settle(adopted)
        return adopted

    async def close(self) -> None:
        """Leave: sandboxes go on living with the holder and are found again by the next `open`."""
        for running in self._running.values():
            running.close(thaw=True)
        self._running.clear()
        for book in self._books.values():
            book.close()
        await self._engine.close()
        await self._pauses.close()
        await self._disks.close()

    async def shutdown(self) -> None:
        """End every sandbox and everything of this installation but what is stored: disks of stopped sandboxes, images, output."""
        for running in self._running.values():
            running.close(thaw=False)
        self._running.clear()
        for book in self._books.values():
            book.close()
        self._books.clear()
        await self._engine.shutdown()
        await self._pauses.close()
        await asyncio.to_thread(self._differences.sweep)
        await self.volumes.shutdown()
        await asyncio.to_thread(rootfs.unmount_layers, self._places)
        await self._disks.shutdown()
        with contextlib.suppress(OSError):  # not empty: something of it could not be taken down, which was said
            self._places.run.rmdir()

    async def _remove_strangers(self, alive: Collection[str], known: Collection[str]) -> None:
        """What a server left that was killed before it had written down that it makes a sandbox."""
        for id in alive:
            log.warning("removing a sandbox that nobody knows", sandbox=id)
            await self.remove(id)
        for id in self._engine.ended():
            if id not in known:
                self._engine.forget(id)
        if self._places.spool.is_dir():
            for directory in self._places.spool.iterdir():
                if directory.name not in known:
                    await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)

    async def _adopt(self, box: RunscBox) -> str | None:
        still = record.stands_still(self._places.boxes, box.id)
        if still and box.id in self._pauses:
            # It was saved, and only its end is missing.
            await self._engine.kill(box.id)
            return None
        running = self._enter(box.spec, box)
        self.volumes.adopt(box.id, box.spec.volumes)
        try:
            box.thaw()
            await (self._rouse(running) if still else running.guest.hello())
            if running.guest.claimed:
                return box.id
            detail = "the server ended while it was being created"
        except CorralError as error:
            detail = error.message
        if box.id in self._pauses:
            # Its resume was cut off: that is undone (`Pauses.settle`), and it is paused as it was, with its processes.
            self._suspend(box.id)
            await self._engine.kill(box.id)
            await self.volumes.release(box.id)
            return None
        why = (Reason.ENGINE_ERROR, f"it could not be adopted: {detail}")
        self._leave(box.id)
        await self._engine.kill(box.id, why=why)
        await self.volumes.release(box.id)
        log.warning("a sandbox could not be adopted", sandbox=box.id, detail=detail)
        await self._tell(Ended(box.id, *why, disk_kept=True))
        return None

    async def _rouse(self, running: Running) -> None:
        """Say hello to a guest that was about to stand still, or does, or goes on already: nobody knows."""
        try:
            await running.guest.hello(timeout=STILL)
        except Unavailable:
            await self._engine.go_on(running.spec.id)
            await running.guest.hello()

    # Life

    async def create(self, spec: BoxSpec, *, secrets: Mapping[str, str] | None = None) -> Timing:
        """Start a new sandbox. `secrets`: values, by name, of those that its egress policy uses. When it fails nothing of it is left."""
        try:
            if spec.image.warm is not None and not spec.tmp_on_disk:
                try:
                    return await self._start_warm(spec, secrets)
                except (Unsupported, UrpcError) as error:
                    log.warning("a snapshot's memory can't be used", sandbox=spec.id, snapshot=spec.image.id, why=error.message)
                    self._event(spec.id, "sandbox.started_cold", {"snapshot": spec.image.id, "why": error.message})
                    await self._remove_stored(spec.id)
            return await self._start(spec, secrets)
        except BaseException:
            await asyncio.shield(self._remove_stored(spec.id))
            raise

    async def _start_warm(self, spec: BoxSpec, secrets: Mapping[str, str] | None) -> Timing:
        await self.snapshots.ready(spec.image)

        async def enter(box: RunscBox, slept: float) -> None:
            running = self._enter(spec, box)
            running.guest.processes.slept(slept)
            await self._welcome(running, box)
            names = await self.volumes.attach(spec.id, spec.volumes, box.volumes)
            for name, use in zip(names, spec.volumes, strict=True):
                await running.guest.volume(name, use.path, attach=True)

        try:
            return await self._warm.start(spec, secrets or {}, enter)
        except BaseException:
            self._leave(spec.id)
            await asyncio.shield(self._engine.kill(spec.id))
            await asyncio.shield(self.volumes.release(spec.id))
            raise

    async def _welcome(self, running: Running, box: RunscBox) -> None:
        """One that was another sandbox until now."""
        for why in await returned(running.guest, running.spec, box, fork=True):
            self._event(running.spec.id, "fork.hook_failed", {"why": why})
        await self._make_trust(running, running.spec.egress)

    async def keep_warm(self, id: str, sandbox: str, image: ImageSpec, *, user: str | None, workdir: str | None) -> StoredSnapshot:
        """A snapshot of a running sandbox of `image` with its memory, `id`; the sandbox goes on. Raises `Unsupported` when it can't be saved."""
        making = asyncio.ensure_future(self._warm.make(self._get(sandbox), id, image, user=user, workdir=workdir))
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            # Its sentry is not to be left in the middle of a save.
            await asyncio.wait([making])
            await self.snapshots.remove(id)
            raise

    async def start(self, spec: BoxSpec, *, secrets: Mapping[str, str] | None = None) -> Timing:
        """Start a stopped sandbox on its own disk."""
        return await self._start(spec, secrets)

    async def _start(self, spec: BoxSpec, secrets: Mapping[str, str] | None) -> Timing:
        began = time.perf_counter()
        await self.snapshots.ready(spec.image)
        box, timing = await self._engine.claim(spec, secrets)
        assert isinstance(box, RunscBox)
        claimed = time.perf_counter()
        if (book := self._books.pop(spec.id, None)) is not None:
            book.close()
        try:
            running = self._enter(spec, box)
            names = await self.volumes.attach(spec.id, spec.volumes, box.volumes)
            claim = running.guest.claim(
                hostname=spec.hostname,
                memory=spec.memory,
                cpus=min(math.ceil(spec.cpu), self._cores),
                pids=spec.pids,
                tmp=0 if spec.tmp_on_disk else max(16, spec.memory // 2),
                sudo=spec.sudo,
                files=identity.files(spec.hostname, box.address),
                volumes=[requests.Volume(name, os.fsencode(use.path)) for name, use in zip(names, spec.volumes, strict=True)],
            )
            # Both are sent at once; the agent takes them in this order.
            await asyncio.gather(running.guest.hello(), claim)
            await self._make_trust(running, spec.egress)
        except BaseException:
            self._leave(spec.id)
            await asyncio.shield(self._engine.kill(spec.id))
            await asyncio.shield(self.volumes.release(spec.id))
            raise
        ended = time.perf_counter()
        return {**timing, "ready": ended - claimed, "total": ended - began}

    async def pause(self, id: str) -> Timing:
        """Save its memory and end it: it takes no memory and no process until it is resumed. Raises `Unsupported` when it can't be saved; whatever is raised, it goes on."""
        running = self._get(id)

        timing = await asyncio.shield(self._pauses.pause(running, lambda: self._suspend(id)))
        try:
            # What it wrote has to outlive the machine with it.
            await in_thread(spool.settle, self._places.spool / id)
        except OSError as error:
            log.error("a paused sandbox' output may not survive a power cut", sandbox=id, error=str(error))
        return timing

    async def resume(self, spec: BoxSpec, *, secrets: Mapping[str, str] | None = None) -> Timing:
        """Have a paused sandbox go on where it was. When it fails it is paused as before."""
        await self.snapshots.ready(spec.image)
        saved, slept = self._pauses.memories.get(spec.id), 0.0

        async def enter(box: RunscBox) -> None:
            nonlocal slept
            running = self._enter(spec, box, book=self._books.pop(spec.id, None))
            slept = max(0.0, time.time() - saved.at) if saved is not None else 0.0
            running.guest.processes.slept(slept)
            await returned(running.guest, spec, box, fork=False)
            await self._make_trust(running, spec.egress)

        def leave() -> None:
            if (book := self._suspend(spec.id)) is not None:
                book.slept(-slept)

        return await asyncio.shield(self._pauses.resume(spec, secrets or {}, enter, leave))

    async def fork(self, id: str, children: Sequence[Child]) -> list[Timing | CorralError]:
        """New sandboxes with the disk, memory and processes of a running one. For each how long it took, or why it failed: then nothing of it is left. Raises `Unsupported` when that can't be saved."""
        source = self._get(id)
        await self.snapshots.ready(source.spec.image)

        async def enter(child: Child, box: RunscBox) -> None:
            await self._welcome(self._enter(child.spec, box), box)

        return await asyncio.shield(self._forks.fork(source, children, enter, self.remove))

    def paused(self, id: str) -> bool:
        return id in self._pauses

    def engine_of(self, id: str) -> str | None:
        """The version of runsc that the memory of a paused sandbox, or of a snapshot, needs; None: it has none."""
        saved = self._pauses.memories.get(id)
        return None if saved is None else saved.needs.runsc

    def is_current(self, id: str) -> bool:
        """Whether a snapshot's memory was saved by the runsc and the guest agent in use, on a processor that can do the same: so that one taken now would be no better."""
        saved = self._pauses.memories.get(id)
        return saved is not None and saved.needs == self._engine.own_needs

    async def stop(self, id: str) -> None:
        """End its processes; disk and output stay. Idempotent."""
        self._leave(id)
        await self._forget_memory(id)
        await self._engine.kill(id)
        await self.volumes.release(id)

    async def remove(self, id: str) -> None:
        """End it and delete everything of it. Idempotent."""
        self._leave(id)
        # The disk goes before it is unmounted: nothing of it need be written out.
        await self._engine.kill(id, keep_disk=False)
        await self.volumes.release(id)
        await self._remove_stored(id)

    async def _forget_memory(self, id: str) -> None:
        """Of a paused one: what it ran is lost."""
        if id in self._pauses:
            if (book := self._books.get(id)) is not None:
                book.lose()
            await self._pauses.drop(id)

    async def _remove_stored(self, id: str) -> None:
        await self._forget_memory(id)
        if (book := self._books.pop(id, None)) is not None:
            book.close()
        self._outward.forget(id)
        self._engine.forget(id)
        await self._disks.remove(id)
        await asyncio.to_thread(shutil.rmtree, self._places.spool / id, ignore_errors=True)

    def _enter(self, spec: BoxSpec, box: RunscBox, *, book: ProcessBook | None = None) -> Running:
        freeze = spec.freeze and (self._settings.freeze == "always" or (self._settings.freeze == "auto" and self._engine.burns_when_idle))
        running = Running(spec, box, self._places.spool / spec.id, crowd=self._crowd if freeze else None, hooks=self._hooks, book=book)
        self._running[spec.id] = running
        return running

    def _leave(self, id: str) -> None:
        """Its guest is about to be killed, or is dead: what it ran is lost, what it wrote stays readable."""
        if (running := self._running.pop(id, None)) is not None:
            running.guest.processes.lose()
            running.close(thaw=False)

    def _suspend(self, id: str) -> ProcessBook | None:
        """Its guest is about to be killed, and comes back: what it ran goes on then. None: it does not run."""
        if (running := self._running.pop(id, None)) is None:
            return None
        self._books[id] = running.suspend()
        return self._books[id]

    async def _died(self, ended: Ended) -> None:
        if ended.id in self._pauses and ended.id not in self._running:
            return  # while it was being resumed, or just when it had been saved
        await self._tell(ended)
        self._leave(ended.id)
        await self.volumes.release(ended.id)

    def _garbage(self, id: str, why: str) -> None:
        self._end(Ended(id, Reason.AGENT_GARBAGE, why, disk_kept=True))

    def _silent(self, id: str) -> None:
        """Its link has ended. When its sentry does not follow soon, the agent has left it."""
        silent = self._running.get(id)

        def end() -> None:
            if silent is not None and self._running.get(id) is silent:
                self._end(Ended(id, Reason.AGENT_DIED, "its guest agent closed the link", disk_kept=True))

        asyncio.get_running_loop().call_later(SILENCE, end)

    def _end(self, ended: Ended) -> None:
        async def end() -> None:
            await self._engine.kill(ended.id, why=(ended.reason, ended.detail))
            await self._died(ended)

        task = asyncio.get_running_loop().create_task(end())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _denied(self, flow: Flow) -> None:
        if (running := self._running.get(flow.sandbox)) is not None:
            running.denials.add(flow)

    def _event(self, id: str, kind: str, data: Mapping[str, Any]) -> None:
        self._hooks.on_event(id, kind, data)

    async def _tell(self, ended: Ended) -> None:
        if self._on_end is not None:
            await self._on_end(ended)

    # What a sandbox offers

    def running(self, id: str) -> bool:
        return id in self._running

    def frozen(self, id: str) -> bool:
        return id in self._running and self._running[id].frozen

    def processes(self, id: str) -> ProcessBook:
        """Of a running or a stopped sandbox."""
        if (running := self._running.get(id)) is not None:
            return running.guest.processes
        if (book := self._books.get(id)) is None:
            book = self._books[id] = ProcessBook(self._places.spool / id, id)
            if id not in self._pauses:
                book.lose()
        return book

    def files(self, id: str) -> Files:
        return self._get(id).files

    async def metadata(self, id: str, paths: Sequence[str]) -> list[dict[str, str]]:
        """What clients attached to each of these files (absolute paths)."""
        root, places = self._get(id).box.root, [encoded(path) for path in paths]
        if len(places) <= _FILES_A_TIME:
            return metadata.read(root, places)
        return await asyncio.to_thread(metadata.read, root, places)

    def set_metadata(self, id: str, path: str, values: Mapping[str, str]) -> None:
        """Attach these words to a file that was just written, and no others."""
        metadata.write(self._get(id).box.root, encoded(path), values)

    async def ports(self, id: str) -> list[messages.ListeningPort]:
        return await self._get(id).guest.ports()

    def sample(self, id: str) -> Sample:
        """Its use, without waking it. `processes` are then those started through the API that run; `sample_now` counts all."""
        running = self._get(id)
        return running.box.sample().model_copy(update={"processes": max(running.guest.alive, running.guest.processes.running)})

    async def sample_now(self, id: str) -> Sample:
        running = self._get(id)
        usage = await running.guest.usage()
        return running.box.sample().model_copy(update={"processes": usage.processes})

    def logs(self, id: str) -> list[LogLine]:
        return self._get(id).box.log_lines()

    # Its volumes

    async def attach_volume(self, id: str, use: VolumeUse) -> None:
        """Have a volume appear in a running sandbox."""
        running = self._get(id)
        (name,) = await self.volumes.attach(id, [use], running.box.volumes)
        try:
            await running.guest.volume(name, use.path, attach=True)
        except BaseException:
            await asyncio.shield(self.volumes.detach(id, use, running.box.volumes, left=running.spec.volumes))
            raise
        running.spec = self._engine.set_volumes(id, (*running.spec.volumes, use))

    async def detach_volume(self, id: str, use: VolumeUse) -> None:
        """Take a volume away from a running sandbox. What it has open there it may use on. Nothing happens if it does not have it."""
        running = self._get(id)
        left = tuple(other for other in running.spec.volumes if other != use)
        try:
            await running.guest.volume(name_of(use), use.path, attach=False)
        except (InvalidArgument, FileNotFound) as error:
            # Root inside has unmounted it before.
            log.info("a volume was not where it had been attached", sandbox=id, volume=use.id, why=error.message)
        await self.volumes.detach(id, use, running.box.volumes, left=left)
        running.spec = self._engine.set_volumes(id, left)

    # What it may reach

    @property
    def networked(self) -> bool:
        """Whether sandboxes can have a network here; if not, the log and `corral doctor` say why."""
        return self._engine.network.reason is None

    async def set_egress(self, id: str, policy: EgressPolicy, secrets: Mapping[str, str]) -> None:
        """Change what a running sandbox may reach; connections that it no longer may have are cut."""
        await self._engine.set_egress(id, policy, secrets)
        await self._make_trust(self._get(id), policy)

    async def _make_trust(self, running: Running, policy: EgressPolicy) -> None:
        """Where TLS is ended, what its programs are shown must be trusted by them."""
        if policy.inspects:
            await trust.install(running.files, self._authority.pem())
        running.trust(policy)

    def traffic(self, id: str) -> tuple[int, int]:
        """Bytes sent and received by a running sandbox."""
        return self._engine.traffic(id)

    async def flows(self, id: str, *, after: int, limit: int, denied: bool) -> Flows:
        """What a sandbox, running or stopped, has reached until now, or only what it was denied."""
        await self._engine.network.told()
        return self._outward.flows(id, after=after, limit=limit, denied=denied)

    async def follow_flows(self, id: str, *, after: int, denied: bool) -> AsyncGenerator[Flow, None]:
        """The same, and then what comes, until the sandbox is removed."""
        with self._outward.following(id) as feed:
            while True:
                if (flows := feed.take()) is None:
                    page: int | None = after
                    while page is not None:
                        found = await self.flows(id, after=page, limit=FLOWS, denied=denied)
                        for flow in found.flows:
                            yield flow
                            after = flow.seq
                        page = found.next
                    continue
                for flow in flows:
                    if flow.seq > after and (not denied or flow.verdict is Verdict.DENIED):
                        yield flow
                if flows:
                    continue
                if feed.ended:
                    return
                try:
                    async with asyncio.timeout(LOOK_AGAIN):
                        await feed.news.wait()
                except TimeoutError:
                    # What has ended by itself is told to those who ask.
                    await self._engine.network.told()

    async def proposal(self, id: str) -> EgressPolicy | None:
        """The smallest policy that would have allowed what was used under one that learns."""
        running = self._running.get(id)
        if running is None or not running.box.spec.egress.learn:
            return None
        await self._engine.network.told()
        return self._outward.proposal(id, running.box.spec.egress)

    def approvals(self) -> list[Approval]:
        """Connections that wait for a decision."""
        return self._outward.approvals()

    async def decide(self, id: str, decision: Decision) -> None:
        """Raises `NotFound` for one that does not wait (any more)."""
        if not await self._engine.network.egress.client.decide(id, decision):
            raise NotFound(f"no connection waits for the approval {id}", hint="it may have been decided, or have waited too long")

    def last_activity(self, id: str) -> float:
        """On the clock of `time.monotonic`."""
        return self._get(id).last_activity

    def relay(self, id: str) -> int | None:
        """The descriptor of a running sandbox's relay link, to be lent to the preview process; None when it does not run (any more)."""
        running = self._running.get(id)
        return None if running is None or running.link.error is not None else running.box.relay.fileno()

    def silence_ports_with(self, quiet: Callable[[str], AbstractAsyncContextManager[None]]) -> None:
        """`quiet`: of those whom relay links are lent to; while it lasts for a sandbox they send it nothing. Used while its memory is written down."""
        self._pauses.ports_quiet = quiet

    def keep_awake(self, id: str, *, on: bool) -> None:
        """Whether it is used by others than this node, so that it must not be frozen. Nothing happens when it does not run."""
        if (running := self._running.get(id)) is not None:
            running.keep_awake(on=on)

    def hold(self, id: str, seconds: float) -> None:
        """Keep it awake, as if it were used, for so long from now."""
        self._get(id).hold(seconds)

    @property
    def holder(self) -> HolderClient:
        """For processes that are to outlive this server."""
        return self._engine.holder

    def _get(self, id: str) -> Running:
        if (running := self._running.get(id)) is None:
            if id in self._pauses:
                raise InvalidState(f"sandbox {id} is paused", hint="resume it")
            raise InvalidState(f"sandbox {id} is not running", hint="start it first")
        if isinstance(running.link.error, SandboxEnded):
            raise SandboxEnded(f"sandbox {id} has just ended", hint="look at its reason")
        return running

    # Images

    def images(self) -> tuple[StoredImage, ...]:
        return self._catalog.list()

    def image(self, name_or_id: str) -> ImageSpec:
        """An image, or a snapshot by its id. Raises `ImageNotFound`."""
        return self.snapshots.get(name_or_id).spec if is_id(name_or_id, "sn") else self._catalog.spec(name_or_id)

    def disk_used(self, id: str) -> int:
        """Bytes on the disk of a sandbox, running or stopped."""
        return self._disks.used(id)

    async def diff(self, id: str, image_id: str, before: Moment, after: Moment, *, text: bool, limit: int) -> Diff:
        """What differs between two moments of the disk of a sandbox of that image, running or stopped."""
        return await self._differences.compare(id, self.image(image_id), before, after, text=text, limit=limit)

    async def merge(
        self, id: str, image_id: str, *, base: Moment, theirs: Moment, ours: Moment, on_conflict: OnConflict, dry_run: bool
    ) -> tuple[list[Change], list[MergeConflict], bool]:
        """Take over into a running sandbox, whose disk is as `ours`, what has changed from `base` to `theirs`; tells what, what is in conflict, and whether it was done."""
        running = self._get(id)
        into = None if dry_run else Files(running.link, running.guest.processes.next_channel)
        return await carry_out(self._differences, id, self.image(image_id), base=base, theirs=theirs, ours=ours, on_conflict=on_conflict, into=into)

    async def rewind(self, id: str, snapshot: str) -> None:
        """Make the disk of a stopped sandbox that of a snapshot of it: wholly, or not at all."""
        await self._disks.replace(id, self.snapshots.image_of(snapshot))
