"""The processes of one sandbox, dead and alive: started once, found again by the next server, kept for a while after their end."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from corral.errors import CorralError, InvalidArgument, InvalidState, NotFound, QuotaExceeded, Unavailable
from corral.ids import is_id, new_id
from corral.node.journal import Asked, Closed, Exited, Fact, Forgotten, Journal, Opened, Slept, StdinEnded, TimedOut
from corral.node.link import Link, RequestFailed
from corral.node.process import CHUNK, Chunk, Process
from corral.node.refusals import start_refusal
from corral.node.spool import BOUND, Segment, Spool
from corral.node.start import Defaults, prepare
from corral.schema import process as schema
from corral.wire import requests
from corral.wire.frame import MAX_CHANNEL, ProtocolError
from corral.wire.messages import Greeting, Held, Started

OPEN = 1000
"""Processes that may run at once: the agent tells of all of them in one frame when a server takes its link."""
_CHANNELS_A_TIME = 4096
_JOURNAL_SLACK = 1 << 20
_END_TIMEOUT = 10.0

log = structlog.get_logger(__name__)

OnEvent = Callable[[str, Mapping[str, Any]], None]
"""Told of `process.started`, `process.exited`, `port.opened` and `port.closed`, with what is known of them."""


@dataclass(frozen=True)
class Bounds:
    """What is kept: bytes of each stream, bytes of all streams of a sandbox together, finished processes."""

    stream: int = BOUND
    sandbox: int = 512 << 20
    finished: int = 1000


class Branch:
    """Processes at one moment, to be written down again elsewhere."""

    def __init__(self, directory: Path, facts: list[Fact], spools: list[tuple[str, list[Segment]]]) -> None:
        self._directory = directory
        self._facts = facts
        self._spools = spools

    def write(self, directory: Path) -> None:
        """Blocks: it copies the newest part of what each process wrote, and shares the rest. What has been given up meanwhile is missing."""
        for id, segments in self._spools:
            target = directory / id
            target.mkdir(mode=0o700, parents=True, exist_ok=True)
            for segment in segments:
                segment.share(self._directory / id, target)
        Journal(directory / "processes.jsonl").start(self._facts)

    @classmethod
    def written(cls, directory: Path) -> Branch:
        """One that was written to a directory in which nothing has happened since. Blocks."""
        places = [place for place in directory.iterdir() if place.is_dir()]
        spools = [(place.name, segments) for place in places for stream in (1, 2) if (segments := Spool(place, stream).segments())]
        return cls(directory, Journal(directory / "processes.jsonl").read(), spools)


class ProcessBook:
    """All processes of a sandbox. Without a link (a stopped sandbox) it can be read; what needs the guest raises `InvalidState`."""

    def __init__(
        self,
        directory: Path,
        sandbox: str,
        *,
        defaults: Defaults | None = None,
        bounds: Bounds | None = None,
        on_event: OnEvent | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Read what an earlier server wrote into `directory` (`spool/<sandbox>`)."""
        self.sandbox = sandbox
        self.now = now
        self.environment: Mapping[str, str] = {}
        """What processes get from now on, besides what the guest got when it was claimed."""
        self._directory = directory
        self._defaults = defaults or Defaults()
        self._bounds = bounds or Bounds()
        self._on_event: OnEvent = on_event or (lambda _kind, _data: None)
        self._journal = Journal(directory / "processes.jsonl")
        self._link: Link | None = None
        self._processes: dict[str, Process] = {}
        self._finished: dict[str, None] = {}
        self._closed: dict[str, None] = {}
        """Those of which nothing more comes and whose output may still be kept, oldest first."""
        self._epoch = 0
        self._channel = 0
        self._channels_reserved = 0
        self._used = 0
        self._compact_at = _JOURNAL_SLACK
        self._load()

    # ── what an earlier server left ──

    def _load(self) -> None:
        for fact in self._journal.read():
            match fact:
                case Opened():
                    self._epoch = fact.epoch
                    self._channel = self._channels_reserved = fact.channels
                case Asked():
                    self._processes[fact.id] = self._process(fact, fresh=False)
                case TimedOut() if process := self._processes.get(fact.id):
                    process.timed_out = True
                case StdinEnded() if process := self._processes.get(fact.id):
                    process.stdin_ended = fact.offset
                case Slept() if process := self._processes.get(fact.id):
                    process.slept += fact.seconds
                case Exited() if process := self._processes.get(fact.id):
                    process.exited, process.pid, process.closed = fact, fact.pid, fact.closed
                    self._finished[fact.id] = None
                case Closed() if process := self._processes.get(fact.id):
                    process.closed = True
                case Forgotten():
                    self._processes.pop(fact.id, None)
                    self._finished.pop(fact.id, None)
                case _:
                    log.warning("journal_fact_about_nothing", sandbox=self.sandbox, fact=repr(fact)[:200])
        self._closed.update((id, None) for id, process in self._processes.items() if process.closed)

    def _process(self, asked: Asked, *, fresh: bool) -> Process:
        return Process(asked, self, self._directory / asked.id, bound=self._bounds.stream, fresh=fresh)

    def hello(self) -> requests.Hello:
        """The request that takes the link."""
        self._epoch += 1
        self._reserve()
        have = [
            requests.Have(process.asked.channel, {str(stream): process.spool(stream).end for stream in ((1,) if process.asked.pty else (1, 2))})
            for process in self._processes.values()
            if not process.closed
        ]
        return requests.Hello(epoch=self._epoch, channels=have)

    def adopt(self, link: Link, greeting: Greeting) -> None:
        """Go on with the processes that the agent still has; the others are lost."""
        self._link = link
        held = {each.channel: each for each in greeting.channels}
        for process in [each for each in self._processes.values() if not each.closed]:
            one = held.pop(process.asked.channel, None)
            if one is not None and one.kind == "process" and one.id == process.asked.id:
                self._resume(process, link, one)
            elif process.running:
                # Also when the agent was still starting it while it greeted us.
                link.post(requests.Close(channel=process.asked.channel))
                process.lose()
            else:
                self.closed(process)
        for stranger in held.values():
            # A transfer whose reader or writer died with the earlier server, or a process nobody can name.
            link.post(requests.Close(channel=stranger.channel))

    def _resume(self, process: Process, link: Link, held: Held) -> None:
        process.pid = held.pid or process.pid
        process.connect(link, stdin=held.received.get("0", 0), taken=held.taken)
        try:
            if held.ended is not None:
                process.on_event(held.ended)
        except ProtocolError as error:
            log.warning("process_ended_strangely", sandbox=self.sandbox, process=process.asked.id, error=str(error))
            link.post(requests.Close(channel=held.channel))
            process.lose()
        process.arm()

    def suspend(self) -> None:
        """The sandbox is being paused: its processes are neither running nor lost until `adopt`."""
        self._link = None
        for process in self._processes.values():
            process.suspend()

    def slept(self, seconds: float) -> None:
        """It was paused for so long, which counts for no process' timeout. Less than nothing: it was not, after all."""
        for process in self._processes.values():
            if process.running and process.asked.timeout is not None:
                process.slept += seconds
                self._append(Slept(process.asked.id, seconds))

    def next_channel(self) -> int:
        """A channel number that was never used in this sandbox."""
        if self._channel + 1 >= self._channels_reserved:
            self._reserve()
        self._channel += 1
        return self._channel

    def _reserve(self) -> None:
        self._channels_reserved = self._channel + _CHANNELS_A_TIME
        if self._channels_reserved > MAX_CHANNEL:
            raise InvalidState("this sandbox has opened two thousand million channels", hint="create another one")
        self._record(Opened(epoch=self._epoch, channels=self._channels_reserved))

    # ── processes ──

    async def start(self, request: schema.ProcessStart, *, id: str | None = None) -> schema.Process:
        """Start a process. With an `id` it is started once, however often it is asked for.

        Without one, a caller that is cancelled leaves no process behind. Raises `NotExecutable`, `FileNotFound` (of the cwd), `InvalidArgument`
        (unknown user), `QuotaExceeded`, `TooLarge`.
        """
        if id is not None and not is_id(id, "pr"):
            raise InvalidArgument(f"`{id}` is not a process id")
        process = self._processes.get(id) if id is not None else None
        if process is None:
            process = self._begin(request, id or new_id("pr"))
        starting = process.starting
        if starting is not None:
            try:
                await asyncio.shield(starting)
            except asyncio.CancelledError:
                if id is None:
                    self._forget(process)
                raise
        return process.describe()

    def _begin(self, request: schema.ProcessStart, id: str) -> Process:
        link = self._use()
        if sum(process.open for process in self._processes.values()) >= OPEN:
            raise QuotaExceeded(f"{OPEN} processes of this sandbox are running", hint="wait for some to end, or let one of them start the others")
        asked, start = prepare(request, self._defaults, id=id, channel=self.next_channel(), at=self.now(), environment=self.environment)
        # Written before the agent knows: a process that runs is always in the journal.
        self._record(asked)
        process = self._processes[id] = self._process(asked, fresh=True)
        process.connect(link)
        process.starting = asyncio.get_running_loop().create_task(self._start(process, link, start))
        # Whoever asked may have gone; the failure is then nobody's.
        process.starting.add_done_callback(lambda task: task.cancelled() or task.exception())
        return process

    async def _start(self, process: Process, link: Link, start: requests.Start) -> None:
        try:
            started = await link.request(start, Started)
        except RequestFailed as error:
            self._forget(process)
            raise start_refusal(error.problem, start.argv[0], start.cwd) from error
        except CorralError:
            self._forget(process)
            raise
        if process.forgotten:
            # Requests may overtake each other: the one to close it may have come before the one to start it.
            link.post(requests.Close(channel=start.channel))
        else:
            self._on_event("process.started", {"process": process.asked.id, "pid": started.pid})
            process.started(started.pid)

    def get(self, id: str) -> schema.Process:
        return self._find(id).describe()

    def list(self) -> list[schema.Process]:
        """All that are kept, oldest first."""
        return [process.describe() for process in self._processes.values()]

    @property
    def running(self) -> int:
        """How many run."""
        return len(self._processes) - len(self._finished)

    async def raw_output(
        self, id: str, stdout: int | None = 0, stderr: int | None = 0, *, follow: bool = True, limit: int = CHUNK
    ) -> AsyncGenerator[Chunk | schema.Process]:
        """Output from these offsets on (None: not that stream), and at last the process.

        Following, that is when the process has ended and everything it wrote until then was given; else as soon as what is there was given.
        """
        process = self._find(id)
        async with aclosing(process.output(stdout, stderr, follow=follow, limit=limit)) as chunks:
            async for chunk in chunks:
                yield chunk
        yield process.describe()

    async def output(self, id: str, stdout: int | None = 0, stderr: int | None = 0, *, follow: bool = True) -> AsyncGenerator[schema.Output | schema.Process]:
        """`raw_output` in the form of the API."""
        async with aclosing(self.raw_output(id, stdout, stderr, follow=follow)) as items:
            async for item in items:
                if isinstance(item, Chunk):
                    yield schema.Output(stream=item.stream, offset=item.offset, data=base64.b64encode(item.data).decode(), dropped=item.dropped)
                else:
                    yield item

    async def write_stdin(self, id: str, data: bytes | memoryview, *, offset: int | None = None, eof: bool = False) -> int:
        """Returns the offset of the next byte, when the guest's window has taken these; raises `Conflict` when `offset` would leave a gap."""
        return await (await self._started(id)).write_stdin(data, offset, eof=eof)

    async def signal(self, id: str, signal: schema.Signal) -> None:
        """Raises `InvalidState` when it has ended."""
        await (await self._started(id)).signal(signal)

    async def resize(self, id: str, size: schema.Terminal) -> None:
        await (await self._started(id)).resize(size)

    async def wait(self, id: str, timeout: float | None = None) -> schema.Process:
        """The process when it has ended and its output is complete, or as it is after `timeout` seconds."""
        process = self._find(id)
        try:
            async with asyncio.timeout(timeout):
                await process.wait()
        except TimeoutError:
            pass
        return process.describe()

    async def forget(self, id: str) -> None:
        """Kill it, with all it started, and remove what is kept of it."""
        process = await self._started(id)
        if process.running and process.open:
            try:
                await process.signal(schema.Signal(signal=9, to="tree"))
                async with asyncio.timeout(_END_TIMEOUT):
                    await process.wait()
            except InvalidState:
                pass  # it ended meanwhile
            except TimeoutError:
                log.warning("killed_process_stays", sandbox=self.sandbox, process=id)
        self._forget(process)

    async def _started(self, id: str) -> Process:
        process = self._find(id)
        if process.starting is not None:
            await asyncio.shield(process.starting)
        return process

    def _find(self, id: str) -> Process:
        if (process := self._processes.get(id)) is None:
            raise NotFound(f"there is no process {id} in this sandbox", hint="finished processes are kept for a while only")
        return process

    def _use(self) -> Link:
        if self._link is None:
            raise InvalidState(f"sandbox {self.sandbox} is not running", hint="start it first")
        self._link.check()
        return self._link

    # ── told by processes ──

    def use_changed(self, size: int) -> None:
        self._used += size

    def wrote(self, process: Process) -> None:
        """Keep the sandbox within its bound: first the output of what has ended goes, then the oldest of what grows."""
        if self._used <= self._bounds.sandbox:
            return
        while self._used > self._bounds.sandbox and self._closed:
            oldest = next(iter(self._closed))
            del self._closed[oldest]
            self._processes[oldest].give_up_output()
        while self._used > self._bounds.sandbox and (spools := [spool for stream in (1, 2) if (spool := process.spool(stream)).size]):
            max(spools, key=lambda spool: spool.size).shrink()

    def timing_out(self, process: Process) -> None:
        self._append(TimedOut(process.asked.id))

    def ending_stdin(self, process: Process, offset: int) -> None:
        process.stdin_ended = offset
        self._append(StdinEnded(process.asked.id, offset))

    def exited(self, process: Process) -> None:
        exited = process.exited
        assert exited is not None
        self._append(exited)
        self._finished[exited.id] = None
        if exited.closed:
            self._closed[exited.id] = None
        self._on_event(
            "process.exited", {"process": exited.id, "code": exited.code, "signal": exited.signal, "timed_out": exited.timed_out, "lost": exited.lost}
        )
        if len(self._finished) > self._bounds.finished:
            oldest = next((each for each in self._finished if not self._processes[each].open and each != exited.id), None)
            if oldest is not None:
                self._forget(self._processes[oldest])

    def closed(self, process: Process) -> None:
        process.closed = True
        self._closed[process.asked.id] = None
        self._append(Closed(process.asked.id))

    # ── the end ──

    def lose(self) -> None:
        """The sandbox has ended: so has every process in it, without a status if it has none yet."""
        self._link = None
        for process in list(self._processes.values()):
            process.lose()

    def close(self) -> None:
        """Leave everything as it is for the next server."""
        self._link = None
        for process in self._processes.values():
            process.leave(Unavailable("the server is stopping", hint="try again"))
        self._journal.close()

    def _forget(self, process: Process) -> None:
        if self._processes.pop(process.asked.id, None) is None:
            return
        self._finished.pop(process.asked.id, None)
        self._closed.pop(process.asked.id, None)
        process.forget()
        self._append(Forgotten(process.asked.id))
        if self._journal.size > self._compact_at:
            self._compact()

    def branch(self) -> Branch:
        """What a fork of this sandbox knows of its processes: the same as we, now. For a guest that sends nothing."""
        return Branch(self._directory, self._facts(), [(id, spool) for id, process in self._processes.items() for spool in process.spools()])

    def _compact(self) -> None:
        self._journal.rewrite(self._facts())
        self._compact_at = 2 * self._journal.size + _JOURNAL_SLACK

    def _facts(self) -> list[Fact]:
        facts: list[Fact] = [Opened(epoch=self._epoch, channels=self._channels_reserved)]
        for process in self._processes.values():
            facts.append(process.asked)
            if process.timed_out:
                facts.append(TimedOut(process.asked.id))
            if process.slept and process.running:
                facts.append(Slept(process.asked.id, process.slept))
            if process.stdin_ended is not None and process.running:
                facts.append(StdinEnded(process.asked.id, process.stdin_ended))
            if process.exited is not None:
                facts.append(process.exited)
                if process.closed and not process.exited.closed:
                    facts.append(Closed(process.asked.id))
        return facts

    def _record(self, fact: Fact) -> None:
        try:
            self._journal.append(fact)
        except OSError as error:
            raise Unavailable(f"the node can't keep records of processes: {error}", hint="make room on its disk") from error

    def _append(self, fact: Fact) -> None:
        # Called where nobody could be told; the fact is still known to this server.
        try:
            self._record(fact)
        except Unavailable as error:
            log.error("journal_write_failed", sandbox=self.sandbox, fact=type(fact).__name__, error=error.message)
