"""Pausing and resuming: a sandbox as files, without a process of the host, and back.

pause     programs kept → disk written out → agent quiet → guest stands still → memory saved → all of it safe on the disk → sentry ended
resume    copy of the disk → a prepared member with disk, root and volumes → memory restored → hello → the memory is no more → the copy is no more

Who is killed in between leaves either the running sandbox or the paused one, whole. Until a memory is safe, the sandbox just goes on. Since a guest that comes back changes its disk at once, the
disk is copied before (shared blocks: a millisecond): a resume that fails puts the copy back, and the sandbox is paused as it was.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from pathlib import Path
from typing import NoReturn

import structlog

from corral.errors import CorralError, InvalidState, SandboxEnded, Unavailable, Unsupported
from corral.node.box import RunscBox
from corral.node.disks import PoolDisks
from corral.node.engine import RunscEngine
from corral.node.interface import BoxSpec, Timing
from corral.node.memory import Memories, Needs, Returning, Saved
from corral.node.running import Running
from corral.node.urpc import SentryGone, UrpcError
from corral.node.volumes import Volumes
from corral.places import Places
from corral.wire import messages

TOLD = 5
"""Obstacles that an error names."""
_UNSAVEABLE = "encoding error"
"""How gVisor begins what it says of a thing in its memory that can't be written down."""

log = structlog.get_logger(__name__)


class Pauses:
    """The paused sandboxes of a node."""

    def __init__(self, places: Places, engine: RunscEngine, disks: PoolDisks, volumes: Volumes, memories: Memories) -> None:
        self.memories = memories
        self.ports_quiet: Callable[[str], AbstractAsyncContextManager[None]] = lambda _: nullcontext()
        """While it lasts nothing is sent to a sandbox' ports by whoever else has a link to its agent."""
        self._copies = places.paused
        self._engine = engine
        self._disks = disks
        self._volumes = volumes
        self._removing: set[asyncio.Task[None]] = set()

    def __contains__(self, id: str) -> bool:
        return id in self.memories

    # Finding again

    async def open(self, known: Collection[str] | None) -> None:
        """Before the engine, the disks being open. `known`: the sandboxes and snapshots that there are."""
        await asyncio.to_thread(self._copies.mkdir, mode=0o700, parents=True, exist_ok=True)
        await asyncio.to_thread(self.memories.open, known)

    async def settle(self, alive: Collection[str]) -> None:
        """After everything that lives was adopted, or ended: what was being paused is paused, what was being resumed is running or paused."""
        for id in self.memories.of_sandboxes():
            if id in alive:
                await self.drop(id)
            elif self._copy(id).exists():
                log.info("a resume that was cut off is undone", sandbox=id)
                await self._put_back(id)
        for copy in self._copies.iterdir():
            if copy.stem not in self.memories:
                copy.unlink()

    # Pausing

    async def pause(self, running: Running, leave: Callable[[], object]) -> Timing:
        """Save a sandbox and end its sentry. `leave` is called when it is saved, before it is ended.

        Raises `Unsupported`, with what the mend is, when it can't be saved; it goes on then, as with every other error.
        """
        id, began = running.spec.id, time.perf_counter()
        needs = self.needs(id)
        await asyncio.gather(asyncio.to_thread(self._engine.keep_programs, needs, id), self._disks.write_out(id))
        place = await asyncio.to_thread(self.memories.begin, id)
        async with self.unspoken(running):
            try:
                await self.prepare(running)
                async with self._engine.still(id) as still:
                    stopped = time.perf_counter()
                    await still.save(place)
                    saved = time.perf_counter()
                    document = Saved(id, needs, time.time(), place.size(), len(running.spec.volumes))
                    await asyncio.gather(asyncio.to_thread(self.memories.write_out, document), self._disks.write_out(id))
                    await asyncio.to_thread(self.memories.settle, document)
                    safe = time.perf_counter()
                    leave()
                    await self._engine.kill(id)
            except BaseException as error:
                if id in self.memories:
                    raise
                await asyncio.shield(asyncio.to_thread(self.memories.give_up, id))
                self._engine.tighten(id)
                await self.explained(running, error)
        await self._volumes.release(id)
        ended = time.perf_counter()
        return {"quiet": stopped - began, "save": saved - stopped, "sync": safe - saved, "end": ended - safe, "total": ended - began}

    @asynccontextmanager
    async def unspoken(self, running: Running) -> AsyncGenerator[None]:
        """For as long as it lasts a guest is in use, and nobody sends it anything but who saves it (`Link.hush` says why)."""
        with running.link.working():
            async with self.ports_quiet(running.spec.id):
                yield

    def needs(self, id: str) -> Needs:
        """What the memory of a running sandbox will need. Raises `Unsupported` where nobody knows."""
        if (needs := self._engine.needs(id)) is None:
            raise Unsupported("the sandbox was started by an earlier Corral, which can't save its memory", hint="stop it and start it again, then it can be")
        return needs

    async def prepare(self, running: Running) -> None:
        """Before it stands still. Newer runscs cut connections to other machines when they save, in the source too, and older ones refuse late: so it is refused now. Then nothing is sent."""
        if connected := await running.guest.obstacles(files=False):
            raise obstructed(connected)
        await running.guest.quiesce(on=True)

    async def explained(self, running: Running, error: BaseException) -> NoReturn:
        """A sandbox could not be saved, and goes on, unless it has ended: say why, as far as it can be told."""
        if isinstance(error, SentryGone):
            raise SandboxEnded(f"sandbox {running.spec.id} ended while it was being saved", hint="look at its reason") from error
        try:
            await running.guest.quiesce(on=False)
            obstacles = await running.guest.obstacles(files=True) if isinstance(error, UrpcError) else []
        except CorralError:
            raise error from None  # it has ended meanwhile
        if not obstacles and isinstance(error, UrpcError) and _UNSAVEABLE in error.message:
            raise Unsupported(
                f"this engine can't save the memory of sandbox {running.spec.id} as it is now: {error.message}",
                hint="what it names is in its memory though it was deleted; stop the processes that had it open, or keep the files without the memory",
            ) from error
        if not obstacles:
            raise error
        raise obstructed(obstacles) from error

    # Resuming

    async def resume(self, spec: BoxSpec, secrets: Mapping[str, str], enter: Callable[[RunscBox], Awaitable[None]], leave: Callable[[], None]) -> Timing:
        """Bring a paused sandbox back. `enter` takes the box, says hello to it and tells it where it is; `leave` undoes that. When something fails it is paused as before."""
        id, began = spec.id, time.perf_counter()
        if (saved := self.memories.get(id)) is None:
            raise InvalidState(f"sandbox {id} is not paused")
        await self._keep_copy(id)
        copied = time.perf_counter()
        returning = Returning(self.memories.place(id), saved.needs, lambda place: self._volumes.attach(id, spec.volumes, place))
        try:
            box, timing = await self._engine.restore(spec, secrets, returning)
            restored = time.perf_counter()
            await enter(box)
        except BaseException as error:
            leave()
            await asyncio.shield(self._undo(id))
            if isinstance(error, SentryGone | SandboxEnded):
                raise Unavailable(f"sandbox {id} was ended from outside while it was being resumed, and is paused as before", hint="resume it again") from error
            raise
        await self.drop(id)
        ended = time.perf_counter()
        return {**timing, "copy": copied - began, "ready": ended - restored, "total": ended - began}

    async def drop(self, id: str) -> None:
        """Its memory is of no more use. Nothing happens if it has none. What it takes on the disk goes when the caller has gone on."""
        self.memories.forget(id)
        if (aside := await asyncio.to_thread(self._put_aside, id)) is not None:
            removing = asyncio.get_running_loop().create_task(asyncio.to_thread(shutil.rmtree, aside, ignore_errors=True))
            self._removing.add(removing)
            removing.add_done_callback(self._removing.discard)

    def _put_aside(self, id: str) -> Path | None:
        # In this order: a copy alone means nothing.
        aside = self.memories.put_aside(id)
        self._copy(id).unlink(missing_ok=True)
        return aside

    async def close(self) -> None:
        """What is being removed has gone."""
        if self._removing:
            await asyncio.wait(self._removing)

    async def _undo(self, id: str) -> None:
        await self._engine.kill(id)
        await self._volumes.release(id)
        await self._put_back(id)

    async def _keep_copy(self, id: str) -> None:
        aside = self._copies / f".new-{id}.img"
        aside.unlink(missing_ok=True)
        await self._disks.copy(id, aside)
        aside.rename(self._copy(id))

    async def _put_back(self, id: str) -> None:
        copy = self._copy(id)
        await self._disks.replace(id, copy)
        copy.unlink()

    def _copy(self, id: str) -> Path:
        return self._copies / f"{id}.img"


def obstructed(obstacles: list[messages.Obstacle]) -> Unsupported:
    """What to tell of things that can't be saved."""
    words = {"connection": "has a connection to", "deleted_file": "has the deleted file open:"}
    named = [f"{one.process} (process {one.pid}) {words[one.kind]} {one.what.decode(errors='replace')}" for one in obstacles]
    mends = {
        "connection": "have it close its connections to other machines",
        "deleted_file": "have it close the file, or keep it in /tmp, which is memory",
    }
    kinds = sorted({one.kind for one in obstacles})
    more = f", and {len(named) - TOLD} more" if len(named) > TOLD else ""
    details = [{"kind": one.kind, "pid": one.pid, "process": one.process, "what": one.what.decode(errors="replace")} for one in obstacles]
    return Unsupported(
        f"the sandbox can't be saved and goes on: {'; '.join(named[:TOLD])}{more}",
        hint=f"{'; '.join(mends[kind] for kind in kinds)}; or end the process",
        details={"obstacles": details},
    )
