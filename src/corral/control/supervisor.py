"""Services of sandboxes: started in the order of their needs, watched, started again. What they are stands in files of the sandbox, what they do is told by its processes: nothing else is remembered."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import PurePosixPath

import structlog
from pydantic import ValidationError

from corral.control.attempt import AWAY, Attempt, tag_of
from corral.control.events import EventLog
from corral.control.ports import Node
from corral.control.record import BUILD, Record
from corral.control.starts import Starts
from corral.errors import CorralError, FileNotFound, InvalidArgument, NotFound, QuotaExceeded, Unavailable
from corral.ids import is_id
from corral.images.config import ImageConfig
from corral.schema import file
from corral.schema.service import NAME, Service, ServiceSet

DIRECTORY = "/etc/corral/services"
SERVICES = 64
"""Of one sandbox at most."""
SIZE = 256 << 10
"""Bytes of a service's file at most."""
FILES = 256
"""Entries of the directory that are looked at."""
TOLD = 16
"""Files that are no service's of which an event tells each time; of the others one tells how many they are."""

log = structlog.get_logger(__name__)


class Box(dict[str, Attempt]):
    """The services of a sandbox while it runs, by name. Whoever changes one holds `changing`, or two would look after one service."""

    def __init__(self) -> None:
        super().__init__()
        self.changing = asyncio.Lock()


class Supervisor:
    """Of all sandboxes of one server. `config` gives the configuration of a project's image that a sandbox was made from, None for others."""

    def __init__(self, *, node: Node, events: EventLog, starts: Starts, config: Callable[[Record], ImageConfig | None]) -> None:
        self._node = node
        self._events = events
        self._starts = starts
        self._config = config
        self._boxes: dict[str, Box] = {}
        self._reading: dict[str, asyncio.Task[Box]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # A sandbox

    def runs(self, record: Record) -> None:
        """A sandbox runs from now on: made, started, resumed, or found by a new server. Those without services cost nothing."""
        self.gone(record.id)
        if BUILD in record.tags:
            return
        # A snapshot, or an image of the project, may bring files that nobody here has seen. Of one that is frozen they have been read.
        brings = is_id(record.image_id, "sn") or self._config(record) is not None
        if (brings and not self._node.frozen(record.id)) or any(tag_of(process) is not None for process in self._node.processes(record.id).list()):
            self._later(record)

    def gone(self, id: str) -> None:
        """It does not run any more. Its processes are as they are."""
        for attempt in self._boxes.pop(id, Box()).values():
            attempt.leave()
        self._reading.pop(id, None)

    def close(self) -> None:
        """The server leaves; services live on with their sandboxes."""
        for id in list(self._boxes):
            self.gone(id)
        for task in self._tasks:
            task.cancel()

    def _later(self, record: Record) -> None:
        async def begin() -> None:
            try:
                await self._box(record)
            except CorralError as error:
                log.warning("services_not_started", sandbox=record.id, error=error.message)

        task = asyncio.get_running_loop().create_task(begin())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Its services

    async def list(self, record: Record) -> list[Service]:
        return [attempt.describe() for _, attempt in sorted((await self._box(record)).items())]

    async def get(self, record: Record, name: str) -> Service:
        return _find(await self._box(record), name).describe()

    async def put(self, record: Record, name: str, wanted: ServiceSet) -> Service:
        """Keep it in the sandbox, and start it unless it shall not be. What runs by that name is stopped first."""
        async with self._changing(record) as box:
            _check(name, wanted, box)
            if name not in box and len(box) >= SERVICES:
                raise QuotaExceeded(f"a sandbox has {SERVICES} services at most", hint="remove one")
            await self._keep(record, name, wanted)
            if (attempt := box.get(name)) is not None:
                await attempt.change(wanted)
            else:
                attempt = box[name] = self._attempt(record, name, wanted)
            if wanted.enabled and wanted.http_port is not None:
                attempt.rest()
            elif wanted.enabled:
                self._begin(record, box, attempt)
            return attempt.describe()

    async def serve(self, record: Record, port: int) -> Service | None:
        """A request has come for a port on which nothing listens: the service that is to, once it is ready or over. None: there is none, or it was stopped."""
        box = await self._box(record)
        found = next((one for one in box.values() if one.settings.http_port == port and one.settings.enabled), None)
        if found is None:
            return None
        async with box.changing:
            self._begin(record, box, found)
        await found.settled()
        return found.describe()

    async def start(self, record: Record, name: str) -> Service:
        """Nothing happens when it runs, or waits for its turn."""
        async with self._changing(record) as box:
            attempt = _find(box, name)
            await self._enable(record, attempt, enabled=True)
            self._begin(record, box, attempt)
            return attempt.describe()

    async def stop(self, record: Record, name: str) -> Service:
        """It stays stopped, also when the sandbox is started again, until somebody starts it."""
        async with self._changing(record) as box:
            attempt = _find(box, name)
            await self._enable(record, attempt, enabled=False)
            await attempt.stop()
            return attempt.describe()

    async def remove(self, record: Record, name: str) -> None:
        async with self._changing(record) as box:
            attempt = _find(box, name)
            await self._node.files(record.id).remove(file.Remove.model_validate({"path": _path(name), "missing_ok": True}))
            await attempt.stop()
            del box[name]
            attempt.removed()

    @asynccontextmanager
    async def _changing(self, record: Record) -> AsyncGenerator[Box]:
        """Its services, which nobody else changes meanwhile."""
        box = await self._box(record)
        async with box.changing:
            self._check_runs(record, box)
            yield box

    def _check_runs(self, record: Record, box: Box) -> None:
        """Services of a box that was left would be looked after by nobody who could end that."""
        if self._boxes.get(record.id) is not box:
            raise Unavailable("the sandbox was stopped or paused meanwhile", hint="try again")

    def _begin(self, record: Record, box: Box, attempt: Attempt) -> None:
        self._check_runs(record, box)
        attempt.begin(box)

    async def _enable(self, record: Record, attempt: Attempt, *, enabled: bool) -> None:
        if attempt.settings.enabled is not enabled:
            settings = attempt.settings.model_copy(update={"enabled": enabled})
            await self._keep(record, attempt.name, settings)
            attempt.settings = settings

    async def _box(self, record: Record) -> Box:
        """Its services by name, begun when they are read."""
        if (box := self._boxes.get(record.id)) is not None:
            return box
        if (reading := self._reading.get(record.id)) is None:
            reading = self._reading[record.id] = asyncio.get_running_loop().create_task(self._read(record))
            reading.add_done_callback(lambda done: self._was_read(record.id, done))
        return await asyncio.shield(reading)

    def _was_read(self, id: str, done: asyncio.Task[Box]) -> None:
        if self._reading.get(id) is done:
            del self._reading[id]
        if not done.cancelled():
            done.exception()  # whoever waited was told

    async def _read(self, record: Record) -> Box:
        box = Box()
        try:
            listing = await self._node.files(record.id).list(file.ListFiles.model_validate({"path": DIRECTORY, "limit": FILES}))
        except FileNotFound:
            listing = file.Entries(entries=[], more=False)
        passed_over = 0
        for entry in listing.entries:
            path = PurePosixPath(entry.path)
            if path.suffix != ".json":
                continue
            settings = await self._settings(record, path, tell=passed_over < TOLD) if len(box) < SERVICES else None
            if settings is not None:
                box[path.stem] = self._attempt(record, path.stem, settings)
            else:
                passed_over += 1
        if listing.more or passed_over > TOLD:
            more = f"{max(0, passed_over - TOLD)} more files are no service's" + (
                f", and of those behind the first {FILES} none was looked at" if listing.more else ""
            )
            self._invalid(record, DIRECTORY, {"errors": passed_over, "detail": more})
        if self._reading.get(record.id) is not asyncio.current_task():
            raise Unavailable("the sandbox was stopped or paused meanwhile", hint="try again")
        self._boxes[record.id] = box
        for attempt in box.values():
            if attempt.settings.enabled:
                if attempt.settings.http_port is None or attempt.runs():
                    attempt.begin(box)
                else:
                    attempt.rest()
        return box

    async def _settings(self, record: Record, path: PurePosixPath, *, tell: bool) -> ServiceSet | None:
        """What a file says, if it is a service's. Whatever else is there is of whoever has written it, and must not keep the others from running."""
        try:
            if re.fullmatch(NAME, path.stem) is None:
                raise InvalidArgument("the name of a service is of a-z, 0-9 and -")
            _, download = await self._node.files(record.id).read(file.At.model_validate({"path": str(path)}), length=SIZE)
            return ServiceSet.model_validate_json(b"".join([chunk async for chunk in download]))
        except ValidationError as error:
            first = error.errors()[0]
            wrong: dict[str, object] = {"errors": error.error_count(), "detail": ": ".join([*map(str, first["loc"]), first["msg"]])[:500]}
        except AWAY:
            raise
        except CorralError as error:
            wrong = {"errors": 1, "detail": error.message}
        if tell:
            self._invalid(record, str(path), wrong)
        return None

    def _invalid(self, record: Record, path: str, wrong: Mapping[str, object]) -> None:
        self._events.note("service.invalid", record.project, sandbox=record.id, actor="guest", data={"path": path, **wrong})

    def _attempt(self, record: Record, name: str, settings: ServiceSet) -> Attempt:
        def note(kind: str, **data: object) -> None:
            self._events.note(f"service.{kind}", record.project, sandbox=record.id, data={"service": name, **data})

        return Attempt(
            name, settings, book=lambda: self._node.processes(record.id), ready=lambda probe: self._starts.ready(record, probe, self._events.seq), note=note
        )

    async def _keep(self, record: Record, name: str, settings: ServiceSet) -> None:
        async def text() -> AsyncIterator[bytes]:
            yield settings.model_dump_json(exclude_defaults=True, indent=1).encode() + b"\n"

        await self._node.files(record.id).write(file.At.model_validate({"path": _path(name)}), text(), mode=0o644, user="root")


def _find(box: Box, name: str) -> Attempt:
    if (attempt := box.get(name)) is None:
        raise NotFound(f"there is no service {name} in this sandbox", hint="list those there are", details={"service": name})
    return attempt


def _path(name: str) -> str:
    return f"{DIRECTORY}/{name}.json"


def _check(name: str, wanted: ServiceSet, box: Box) -> None:
    """Raises `InvalidArgument` when services would wait for each other, or for one that is not there."""
    needs: dict[str, Iterable[str]] = {**{other: attempt.settings.needs for other, attempt in box.items()}, name: wanted.needs}
    if missing := [need for need in wanted.needs if need not in needs]:
        raise InvalidArgument(f"the service {name} needs {missing[0]}, which is not there", hint="set that one first", details={"field": "needs"})
    seen: set[str] = set()
    left = [*wanted.needs]
    while left:
        if (need := left.pop()) == name:
            raise InvalidArgument(f"the service {name} needs itself", hint="take one of the needs out", details={"field": "needs"})
        if need not in seen:
            seen.add(need)
            left += needs.get(need, ())
