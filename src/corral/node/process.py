"""One process of a sandbox: its spooled output, its standard input, its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, Protocol

import structlog

from corral.errors import Conflict, CorralError, InvalidState, Unavailable
from corral.node.channel import Channel
from corral.node.journal import Asked, Exited
from corral.node.link import Link, RequestFailed, again
from corral.node.notice import Notice
from corral.node.refusals import refusal
from corral.node.spool import Segment, Spool
from corral.schema import process as schema
from corral.wire import messages
from corral.wire.channel import Receiver, Sender
from corral.wire.frame import MAX_OFFSET, ProtocolError
from corral.wire.messages import Event
from corral.wire.requests import Request, Resize, Signal

STREAMS = {schema.Stream.STDOUT: 1, schema.Stream.STDERR: 2}
CHUNK = 65_536
"""Bytes of one piece of output unless asked otherwise."""
_SIGKILL = 9
_ROUNDS_A_TURN = 16
_KILL_AGAIN = 5.0

log = structlog.get_logger(__name__)


class Chunk(NamedTuple):
    """Output as bytes. `dropped` bytes before `offset` are gone because the process wrote more than is kept."""

    stream: schema.Stream
    offset: int
    data: bytes
    dropped: int


class Book(Protocol):
    """What a process tells the book it is in."""

    sandbox: str

    def now(self) -> float: ...
    def use_changed(self, size: int) -> None: ...
    def wrote(self, process: Process) -> None: ...
    def timing_out(self, process: Process) -> None: ...
    def ending_stdin(self, process: Process, offset: int) -> None: ...
    def exited(self, process: Process) -> None: ...
    def closed(self, process: Process) -> None: ...


class Process:
    """A process that runs, or the record of one that ran. `exited` is set when it has ended *and* all it wrote until then is here."""

    def __init__(self, asked: Asked, book: Book, directory: Path, *, bound: int, fresh: bool) -> None:
        self.asked = asked
        self.pid: int | None = None
        self.exited: Exited | None = None
        self.timed_out = False
        self.stdin_ended: int | None = None
        self.forgotten = False
        self.closed = False
        self.slept = 0.0
        """Seconds for which the sandbox was paused while it ran."""
        self.starting: asyncio.Future[None] | None = None
        self.directory = directory
        self._book = book
        self._bound = bound
        self._fresh = fresh
        self._spools: dict[int, Spool] = {}
        self._channel: Channel | None = None
        self._stdin: Sender | None = None
        self._announced: messages.Exit | None = None
        self._gone: CorralError | None = None
        self._changed = Notice()
        self._ended = Notice()
        self._writing = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._killing: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        return self.exited is None

    @property
    def open(self) -> bool:
        """Whether the agent still has its channel: it runs, or something it started holds its output open."""
        return self._channel is not None

    def spool(self, stream: int) -> Spool:
        """The spool of a stream, looked up on disk when it is first asked for."""
        if (spool := self._spools.get(stream)) is None:
            spool = self._spools[stream] = Spool(self.directory, stream, bound=self._bound, fresh=self._fresh, on_change=self._book.use_changed)
            # After the machine went down, less may be on disk than was written.
            if self.exited and spool.end < (end := _offset(self.exited, stream)):
                spool.skip(end)
        return spool

    def spools(self) -> list[list[Segment]]:
        """What is kept of each stream."""
        return [segments for stream in (1, 2) if (segments := self.spool(stream).segments())]

    # ── channel ──

    def connect(self, link: Link, *, stdin: int = 0, taken: int = 0) -> None:
        """Open the channel's node side; `stdin` is the offset the agent has handed on, `taken` how much it has. What an earlier link of this server's did not bring there is sent again."""
        streams = (1,) if self.asked.pty else (1, 2)
        receivers = {stream: Receiver(offset=self.spool(stream).end) for stream in streams}
        if self._stdin is not None:
            self._stdin.resume(stdin)
        elif self.asked.stdin:
            self._stdin = Sender(offset=stdin, taken=taken)
        if self._stdin is not None and self.stdin_ended == max(stdin, taken):
            self._stdin.finish()
        self._channel = Channel(link, self.asked.channel, self, receivers=receivers, sender=self._stdin)
        link.ready(self._channel)

    def started(self, pid: int) -> None:
        """The agent has started it. A short one may have ended before we were told."""
        self.starting = None
        self.pid = pid
        self.arm()
        self._settle()

    def disconnect(self) -> None:
        """Take nothing more from the guest."""
        if self._channel is not None:
            self._channel.link.detach(self.asked.channel)
            self._channel = None
        self._stop_timer()
        for spool in self._spools.values():
            spool.close()

    def suspend(self) -> None:
        """The sandbox is being paused: nothing comes until it is resumed, and whoever waits goes on waiting. Who writes to it is told to try again, which resumes it."""
        if (channel := self._channel) is not None:
            self.disconnect()
            channel.fail(Unavailable("the sandbox is being paused", hint="try again, which resumes it"))

    def on_data(self, stream: int, payload: memoryview) -> None:
        assert self._channel is not None
        spool = self.spool(stream)
        if payload:
            spool.append(payload)
            self._book.wrote(self)
        self._channel.keep(stream, spool.end)
        self._changed.set()
        self._settle()

    def on_event(self, event: Event) -> None:
        if not isinstance(event, messages.Exit):
            raise ProtocolError(f"`{type(event).__name__}` about a process")
        assert self._channel is not None
        for stream, receiver in self._channel.receivers.items():
            if _offset(event, stream) > receiver.limit:
                raise ProtocolError("a process ended beyond the window of its output")
        self._announced = self._announced or event
        self._settle()

    def on_end(self, error: CorralError) -> None:
        self.leave(error)

    def leave(self, error: CorralError) -> None:
        """Nothing more comes from the guest: whoever waits for it is told, unless the process is found lost."""
        self.disconnect()
        self._gone = error
        self._ended.set()
        self._changed.set()

    def _settle(self) -> None:
        if (channel := self._channel) is None or (said := self._announced) is None or self.starting is not None:
            return
        receivers = channel.receivers
        complete = all(receiver.finished for receiver in receivers.values())
        if self.exited is None and all(r.finished or r.expected >= _offset(said, stream) for stream, r in receivers.items()):
            ends = {stream: min(_offset(said, stream), receiver.expected) for stream, receiver in receivers.items()}
            channel.fail(InvalidState("the process has ended", hint="look at its exit status"))
            self.finish(
                Exited(
                    id=self.asked.id,
                    pid=self.pid,
                    at=self._book.now(),
                    code=said.code,
                    signal=said.signal,
                    stdout=ends.get(1, 0),
                    stderr=ends.get(2, 0),
                    seconds=said.seconds,
                    stdin=self._stdin_offset(),
                    timed_out=self.timed_out and said.signal == _SIGKILL,
                    lost=False,
                    closed=complete,
                )
            )
        if self.exited is not None and complete:
            self.disconnect()
            channel.close()
            if not self.exited.closed:
                self._book.closed(self)

    def lose(self) -> None:
        """The sandbox ended under it."""
        if self.exited is None:
            ends = {stream: self.spool(stream).end for stream in (1, 2)}
            self.finish(
                Exited(
                    id=self.asked.id,
                    pid=self.pid,
                    at=self._book.now(),
                    code=None,
                    signal=None,
                    stdout=ends[1],
                    stderr=ends[2],
                    seconds=None,
                    stdin=self._stdin_offset(),
                    timed_out=False,
                    lost=True,
                    closed=True,
                )
            )
        self.disconnect()

    def finish(self, exited: Exited) -> None:
        """Set the end and tell everybody."""
        self.exited = exited
        self.closed = exited.closed
        self._stop_timer()
        self._book.exited(self)
        self._ended.set()
        self._changed.set()

    def forget(self) -> None:
        """Remove what was kept; readers come to their end."""
        self.forgotten = True
        if (channel := self._channel) is not None:
            self.disconnect()
            channel.close()
        for stream in (1, 2):
            self.spool(stream).remove()
        if self.directory.exists():
            self.directory.rmdir()
        self._ended.set()
        self._changed.set()

    def give_up_output(self) -> bool:
        """Make room: remove all output that is kept, which counts as dropped. Returns whether there was any."""
        gone = False
        for stream in (1, 2):
            spool = self.spool(stream)
            if spool.size:
                spool.skip(spool.end)
                spool.close()
                gone = True
        return gone

    # ── use ──

    async def request(self, request: Request) -> None:
        """Ask the agent something about this process."""
        if (channel := self._channel) is None:
            self._check_awake()
            raise InvalidState(f"process {self.asked.id} has ended", hint="look at its exit status")
        try:
            await channel.link.request(request)
        except RequestFailed as error:
            raise refusal(error.problem) from error

    async def signal(self, signal: schema.Signal) -> None:
        await self.request(Signal(channel=self.asked.channel, signal=signal.signal, to=signal.to))  # pyright: ignore[reportArgumentType]

    async def resize(self, size: schema.Terminal) -> None:
        if not self.asked.pty:
            raise InvalidState(f"process {self.asked.id} has no terminal", hint="start it with a pty")
        await self.request(Resize(channel=self.asked.channel, rows=size.rows, cols=size.cols))

    async def write_stdin(self, data: bytes | memoryview, offset: int | None, *, eof: bool) -> int:
        """Give bytes to standard input; returns the offset of the next byte. Bytes below what was accepted are skipped, so that a repeated call adds nothing."""
        async with self._writing:
            channel = self._channel
            if channel is None or self.exited is not None:
                self._check_awake()
                raise InvalidState(f"process {self.asked.id} has ended", hint="look at its exit status")
            if (sender := channel.sender) is None:
                raise InvalidState(f"process {self.asked.id} was started without standard input", hint="start it with stdin=true")
            start = sender.end if offset is None else offset
            if start > sender.end:
                message = f"standard input has {sender.end} bytes, so a write at {start} would leave a gap"
                raise Conflict(message, hint="write the bytes between first", details={"offset": sender.end})
            fresh = memoryview(data)[sender.end - start :]
            if sender.closed and fresh:
                raise InvalidState("standard input is closed", details={"offset": sender.end})
            await channel.send(fresh)
            if eof and not sender.closed:
                self._book.ending_stdin(self, sender.end)
                channel.finish()
            await channel.sent()
            return sender.end

    async def wait(self) -> None:
        """Until it has ended and all its output is here (or it was forgotten). Raises `Unavailable` when the server stops first."""
        while self.running and not self.forgotten:
            self._check()
            await self._ended.wait()

    async def output(self, stdout: int | None, stderr: int | None, *, follow: bool, limit: int = CHUNK) -> AsyncGenerator[Chunk]:
        """Output from these offsets on (None: not that stream). Following ends where the process' own output ended; not following, where it is now."""
        positions = {stream: at for stream, at in ((schema.Stream.STDOUT, stdout), (schema.Stream.STDERR, stderr)) if at is not None}
        rounds = 0
        while True:
            moved = False
            for stream, position in positions.items():
                end = _offset(self.exited, STREAMS[stream]) if follow and self.exited is not None else MAX_OFFSET
                if position < end and (chunk := self._read(stream, position, limit, end)) is not None:
                    positions[stream] = chunk.offset + len(chunk.data)
                    moved = True
                    yield chunk
            if moved:
                rounds += 1
                if rounds % _ROUNDS_A_TURN == 0:
                    await asyncio.sleep(0)  # a reader that is never made to wait must not keep the loop to itself
                continue
            if not follow or self.exited is not None or self.forgotten:
                return
            self._check()
            await self._changed.wait()

    def _check_awake(self) -> None:
        if self._channel is None and self._gone is None and self.running:
            raise Unavailable("the sandbox is being paused", hint="try again, which resumes it")

    def _check(self) -> None:
        if self._gone is not None:
            raise again(self._gone)

    def _read(self, stream: schema.Stream, position: int, limit: int, end: int) -> Chunk | None:
        piece = self.spool(STREAMS[stream]).read(position, limit)
        if piece is None:
            return None
        offset = min(piece.offset, end)
        return Chunk(stream, offset, piece.data[: max(0, end - piece.offset)], offset - position)

    def describe(self) -> schema.Process:
        asked, exited = self.asked, self.exited
        signal = exited.signal if exited else None
        return schema.Process(
            id=asked.id,
            sandbox=self._book.sandbox,
            argv=[_text(arg) for arg in asked.argv],
            cwd=None if asked.cwd is None else _text(asked.cwd),
            user=asked.user,
            tag=asked.tag,
            pty=asked.pty,
            stdin=asked.stdin,
            pid=self.pid,
            running=exited is None,
            exit_code=None if exited is None else 128 + signal if signal else exited.code,
            signal=signal,
            timed_out=exited is not None and exited.timed_out,
            lost=exited is not None and exited.lost,
            started_at=_time(asked.at),
            ended_at=_time(exited.at) if exited else None,
            duration=exited.seconds if exited else None,
            stdout_offset=self.spool(1).end,
            stderr_offset=self.spool(2).end,
            stdout_start=self.spool(1).start,
            stderr_start=self.spool(2).start,
            stdin_offset=self._stdin_offset(),
        )

    def _stdin_offset(self) -> int:
        if self._stdin is not None:
            return self._stdin.end
        return self.exited.stdin if self.exited else 0

    # ── time ──

    def arm(self) -> None:
        """Kill it, with all it started, when its time is over."""
        if self.asked.timeout is not None and self.exited is None:
            left = self.asked.at + self.asked.timeout + self.slept - self._book.now()
            self._timer = asyncio.get_running_loop().call_later(max(0.0, left), self._expire)

    def _expire(self) -> None:
        self._killing = asyncio.get_running_loop().create_task(self._kill_in_time())

    async def _kill_in_time(self) -> None:
        self.timed_out = True
        self._book.timing_out(self)
        while self.exited is None and self._channel is not None:
            try:
                await self.signal(schema.Signal(signal=_SIGKILL, to="tree"))
                return
            except InvalidState:
                return  # it has ended by itself
            except CorralError as error:
                log.error("timeout_kill_failed", process=self.asked.id, error=str(error))
                await asyncio.sleep(_KILL_AGAIN)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _offset(end: messages.Exit | Exited, stream: int) -> int:
    return end.stdout if stream == 1 else end.stderr


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace")


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
