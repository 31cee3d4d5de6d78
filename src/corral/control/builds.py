"""Builds under way and ended lately. A build lives in this process: when the server ends, what its steps had made by then is kept, and asking again goes on from there."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable

import structlog

from corral.control.builder import Builder
from corral.control.buildlog import TAIL, Progress
from corral.control.events import EventLog
from corral.control.record import BUILD, Record
from corral.control.roles import Actor
from corral.control.sandboxes import Sandboxes
from corral.control.templates import Templates
from corral.errors import Conflict, CorralError, NotFound
from corral.ids import new_id
from corral.schema.account import Role
from corral.schema.image import Bind, BuildCreate, BuildState, Copy, Definition, FromArchive, FromDockerfile, Run

ENDED = 100
"""Ended builds that are remembered …"""
IN_FULL = 10
"""… and of how many of those all that is kept of what they said; of the others the end."""
QUICK = 0.02
"""Seconds in which a build whose every result is known has ended."""

log = structlog.get_logger(__name__)


class Builds:
    """All projects'."""

    def __init__(self, builder: Builder, *, templates: Templates, sandboxes: Sandboxes, events: EventLog, clock: Callable[[], float] = time.time) -> None:
        self._builder = builder
        self._templates = templates
        self._sandboxes = sandboxes
        self._events = events
        self._clock = clock
        self._builds: OrderedDict[str, Progress] = OrderedDict()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._same: dict[str, str] = {}

    async def open(self) -> None:
        """End the sandboxes of builds that an earlier server was killed over."""
        for record in [record for record in self._sandboxes.records() if BUILD in record.tags]:
            self._sandboxes.later(self._end(record))

    async def _end(self, record: Record) -> None:
        await self._sandboxes.delete(Actor(record.created_by, record.project, Role.MEMBER), record.id)

    async def close(self) -> None:
        """End all that are under way."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def start(self, actor: Actor, wanted: BuildCreate, *, password: str | None = None) -> Progress:
        """Begin a build, or join the same one that is under way. `password`: the registry's, where no secret holds it; it is kept nowhere.

        Raises `Conflict` whose `missing` are the digests of files that are to be uploaded first.
        """
        missing = sorted({digest for digest in digests(wanted.definition) if not self._builder.uploads.has(actor.project, digest)})
        if missing:
            raise Conflict(
                f"{len(missing)} files of the build are not here", hint="PUT /v1/images/uploads/{digest}, then ask again", details={"missing": missing}
            )
        same = hashlib.sha256(f"{actor.project}\0{wanted.model_dump_json()}\0{password or ''}".encode()).hexdigest()
        if (running := self._builds.get(self._same.get(same, ""))) is not None:
            return running
        progress = Progress(new_id("bu"), actor.project, self._clock)
        self._builds[progress.id] = progress
        self._same[same] = progress.id
        task = self._tasks[progress.id] = asyncio.get_running_loop().create_task(self._build(actor, wanted, progress, password))
        task.add_done_callback(lambda _: self._forget(progress, same))
        await asyncio.wait({task}, timeout=QUICK)
        return progress

    async def build(self, actor: Actor, wanted: BuildCreate) -> Progress:
        """Build to the end; for callers within the server."""
        progress = await self.start(actor, wanted)
        async for _ in progress.follow(1 << 62):
            pass
        return progress

    def get(self, project: str, id: str) -> Progress:
        """Raises `NotFound`."""
        found = self._builds.get(id)
        if found is None or found.project != project:
            raise NotFound(
                f"there is no build {id[:80]!r}", hint="builds are forgotten when the server ends; ask for the image again, which goes on from there"
            )
        return found

    async def cancel(self, project: str, id: str) -> Progress:
        """End a build; what its steps have made by now is kept. Nothing happens when it has ended."""
        progress = self.get(project, id)
        if (task := self._tasks.get(id)) is not None:
            task.cancel()
            await asyncio.wait({task})
        return progress

    async def project_removed(self, project: str) -> None:
        """Those under way end, and none is known to a later project of its name."""
        theirs = [progress.id for progress in self._builds.values() if progress.project == project]
        tasks = [self._tasks[id] for id in theirs if id in self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for id in theirs:
            self._builds.pop(id, None)

    async def _build(self, actor: Actor, wanted: BuildCreate, progress: Progress, password: str | None) -> None:
        try:
            image = await self._builder.build(actor, wanted, progress, password=password)
            if wanted.template is not None:
                await self._templates.set(actor, wanted.template, wanted.tag, image.id)
        except asyncio.CancelledError:
            progress.fail(Conflict("the build was cancelled"))
            raise
        except CorralError as error:
            progress.fail(error)
        except Exception as error:
            log.exception("build_failed", build=progress.id)
            progress.fail(error)
        else:
            if progress.steps > progress.cached:
                self._events.note("image.built", actor.project, actor=actor.key, data={"image": image.id, "build": progress.id})
            progress.succeed(image.id)

    def _forget(self, progress: Progress, same: str) -> None:
        del self._tasks[progress.id]
        del self._same[same]
        ended = [id for id, build in self._builds.items() if build.state is not BuildState.RUNNING]
        for id in ended[:-IN_FULL]:
            self._builds[id].shorten(TAIL)
        for id in ended[:-ENDED]:
            del self._builds[id]


def digests(definition: Definition) -> set[str]:
    """Of all uploads that a definition takes."""
    found: set[str] = set()
    match definition.source:
        case FromArchive(upload=digest) | FromDockerfile(context=str() as digest):
            found.add(digest)
        case _:
            pass
    for step in definition.steps:
        takers: list[Copy | Bind] = [step] if isinstance(step, Copy) else list(step.binds) if isinstance(step, Run) else []
        for taker in takers:
            if taker.upload is not None:
                found.add(taker.upload)
            if taker.image is not None:
                found |= digests(taker.image)
    return found
