"""The node's end of a guest agent's socket: frames in and out, requests and their answers, channels and whose turn it is to send.

Everything happens in two callbacks of the event loop; there is no task for each frame or link. Reading is bounded for each turn of the loop so that a
flooding guest delays others by about a millisecond. The guest is hostile: whatever it sends is decoded by `corral.wire`, counted when it is garbage, and
after `GARBAGE_LIMIT` such frames `on_garbage` is called once and nothing more is read.
"""

from __future__ import annotations

import asyncio
import errno
import secrets
import select
import socket
import threading
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Protocol, TypeVar

import structlog

from corral.errors import CorralError, QuotaExceeded, SandboxEnded, TooLarge, Unavailable
from corral.wire import frame as wire
from corral.wire import messages
from corral.wire.channel import Segment
from corral.wire.frame import Frame, ProtocolError, Type
from corral.wire.messages import Event, Greeting, Problem
from corral.wire.requests import Request, encode

T = TypeVar("T")

GARBAGE_LIMIT = 16
"""Protocol errors after which a guest agent is held to be hostile or broken."""
PENDING_LIMIT = 1024
REQUEST_TIMEOUT = 30.0
_SOCKET_BUFFER = 4 << 20
_FRAMES_A_TURN = 64
_BYTES_A_TURN = 1 << 20
_OUT_OF_MEMORY_PAUSE = 0.02
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33

log = structlog.get_logger(__name__)


class _Scratch(threading.local):
    """Where packets are received: one place for all links of a loop, since nobody keeps a payload longer than the call that hands it over."""

    def __init__(self) -> None:
        self.buffer = memoryview(bytearray(wire.MAX_FRAME + 1))


_scratch = _Scratch()


class RequestFailed(Exception):
    """The agent answered a request with an error; `files` and `process` turn it into one of `corral.errors`."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"{problem.code}: {problem.message}")
        self.problem = problem


class Port(Protocol):
    """What a link knows of a channel: who takes its frames and what it has to send."""

    number: int

    def on_data(self, frame: Frame) -> None: ...
    def on_ack(self, frame: Frame) -> None: ...
    def on_event(self, event: Event) -> None: ...
    def on_end(self, error: CorralError) -> None: ...
    def peek(self, limit: int) -> Segment | None: ...
    def commit(self, segment: Segment) -> None: ...


class Link:
    """One link. It borrows the socket: `close` stops using it and leaves it open."""

    def __init__(self, sock: socket.socket, on_garbage: Callable[[str], None] | None = None) -> None:
        sock.settimeout(0)
        self._socket = sock
        self._fd = sock.fileno()
        self._loop = asyncio.get_running_loop()
        self._limit = _widen(sock)
        self._buffer = _scratch.buffer
        self._ports: dict[int, Port] = {}
        self._pending: dict[int, asyncio.Future[bytes]] = {}
        self._greeting: tuple[int, Callable[[bytes], None]] | None = None
        """Number of the hello that has not been answered, and who takes the answer. Other answers may come before it: the agent gives them in any order."""
        # Answers to requests of an earlier server may still be in the socket: a random start makes meeting their numbers improbable.
        self._number = secrets.randbits(32)
        self._out: deque[bytes] = deque()
        self._acks: dict[tuple[int, int], bytes] = {}
        self._later: deque[bytes] | None = None
        """What is to be sent when something may be sent again; None: it may."""
        self._ready: deque[Port] = deque()
        self._waiting_ready: set[int] = set()
        self._blocked = False
        self._reading = False
        self._held = 0
        self._garbage = 0
        self._on_garbage = on_garbage
        self.error: CorralError | None = None
        self.on_activity: Callable[[], None] = lambda: None
        self.on_event: Callable[[Event], None] = lambda _: None
        self.on_end: Callable[[CorralError], None] = lambda _: self.settle()
        self._settled = asyncio.Event()
        self._loop.add_reader(self._fd, self._read)

    # ── requests ──

    async def hello(self, request: Request, greeted: Callable[[Greeting], None], *, timeout: float) -> None:
        """Take the link. Whatever comes before the answer was for an earlier server and is dropped: it comes again.

        `greeted` is called before the next frame is read, so that nothing that follows the answer finds its channel missing.
        """

        def take(payload: bytes) -> None:
            if messages.verdict(payload) is None:
                greeted(messages.answer(payload, Greeting))

        number = self._take_number()
        self._greeting = (number, take)
        await self.request(request, Greeting, timeout=timeout, number=number)

    async def request(
        self, request: Request, answer: type[T] = messages.Done, *, timeout: float = REQUEST_TIMEOUT, number: int | None = None, last: bool = False
    ) -> T:
        """Ask and wait for the answer (`number`: one taken already; `last`: nothing is sent behind it until `speak`). Raises `RequestFailed` when the agent refuses, `Unavailable` after `timeout` seconds, `SandboxEnded` when the link ends."""
        if self.error is not None:
            await self._settled.wait()
        self.check()
        if len(self._pending) >= PENDING_LIMIT:
            raise QuotaExceeded(f"{PENDING_LIMIT} requests are under way in this sandbox", hint="wait for some of them to be answered")
        self.on_activity()
        number = self._take_number() if number is None else number
        reply: asyncio.Future[bytes] = self._loop.create_future()
        self._pending[number] = reply
        packet = b""
        try:
            packet = self._post(number, request)
            if last:
                self.hush()
            async with asyncio.timeout(timeout):
                payload = await reply
        except TimeoutError:
            raise Unavailable(
                f"the guest agent did not answer `{_name(request)}` within {timeout:g} s", hint="the sandbox may be overloaded; try again"
            ) from None
        finally:
            self._pending.pop(number, None)
            if reply.cancelled():
                self._unsay(packet)
        try:
            if problem := messages.verdict(payload):
                raise RequestFailed(problem)
            return messages.answer(payload, answer)
        except ProtocolError as error:
            self._count_garbage(error)
            raise Unavailable(
                f"the guest agent's answer to `{_name(request)}` makes no sense", hint="its guest agent may have been tampered with; use another sandbox"
            ) from error

    def post(self, request: Request) -> None:
        """Ask without waiting for the answer; nothing happens when the link has ended."""
        if self.error is None:
            self._post(self._take_number(), request)

    def _take_number(self) -> int:
        while True:
            self._number = (self._number + 1) & 0xFFFF_FFFF
            if self._number not in self._pending:
                return self._number

    def _post(self, number: int, request: Request) -> bytes:
        """Returns the packet, which is sent when that can be."""
        payload = encode(request)
        if len(payload) + wire.HEADER_SIZE > self._limit:
            raise TooLarge(
                f"the request `{_name(request)}` takes {len(payload)} bytes, more than the {self._limit - wire.HEADER_SIZE} that fit",
                hint="pass large arguments in a file",
            )
        packet = wire.message(Type.REQUEST, number, payload)
        (self._out if self._later is None else self._later).append(packet)
        self._flush()
        return packet

    def _unsay(self, packet: bytes) -> None:
        """Nobody waits for it any more. Sent together, what undoes a request and the request itself could be done in either order."""
        for waiting in (self._out, self._later):
            if waiting is not None and packet in waiting:
                waiting.remove(packet)

    def hush(self) -> None:
        """Send nothing more than what was said already, until `speak`: whatever else is to be sent waits.

        For while a sentry writes its memory down. gVisor before 2026 takes packets even then, and what it writes of who waits for them may be half of the old and half of the new:
        an agent that comes back from that never hears of a packet again.
        """
        if self._later is None:
            self._later = deque()

    def speak(self) -> None:
        """Send what has waited, and go on."""
        if self._later is not None:
            self._out += self._later
            self._later = None
            self._flush()

    @contextmanager
    def working(self) -> Generator[None]:
        """For as long as it lasts, the guest counts as busy and is being used."""
        self.on_activity()
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
            self.on_activity()

    # ── channels ──

    def attach(self, port: Port) -> None:
        """Frames for this channel go to `port` from now on."""
        self._ports[port.number] = port

    def detach(self, number: int) -> None:
        """Frames for this channel are dropped from now on."""
        self._ports.pop(number, None)
        for stream in range(wire.STREAMS):
            self._acks.pop((number, stream), None)

    def ready(self, port: Port) -> None:
        """The channel has something to send."""
        if port.number not in self._waiting_ready:
            self._waiting_ready.add(port.number)
            self._ready.append(port)
        if not self._blocked:
            self._flush()

    def ack(self, channel: int, stream: int, offset: int, window: int) -> None:
        """Acknowledge a stream. Of acks that the agent does not read only the newest is kept.

        Those of a batch of frames are sent when who waits for what is in it has been served: a short process has ended by then, and closing its channel says as much in one packet.
        """
        if self.error is None:
            self._acks[channel, stream] = wire.ack(channel, stream, offset, window)
            if not self._blocked and not self._reading:
                self._flush()

    # ── writing ──

    @property
    def busy(self) -> bool:
        """Whether an answer is awaited, a transfer waits for the guest, or something is yet to be sent: the guest must not be frozen."""
        return bool(self._pending or self._out or self._later or self._acks or self._ready or self._held)

    def _flush(self) -> None:
        """Send until there is nothing to send, the socket is full, or the turn is over."""
        if self.error is not None:
            return
        if self.busy:
            self.on_activity()
        budget = _BYTES_A_TURN
        try:
            while budget > 0:
                sent = self._send_one()
                if not sent:
                    self._unblock()
                    return
                budget -= sent
        except BlockingIOError:
            pass
        except ConnectionError:
            # The peer is gone. What it sent before is still to be read; the end is found there.
            self._out.clear()
            self._acks.clear()
            self._ready.clear()
            self._waiting_ready.clear()
            self._unblock()
            return
        except OSError as error:
            if error.errno not in (errno.ENOBUFS, errno.ENOMEM):
                raise
            # The host is so short of memory that no buffer for one packet was found; the socket stays "writable" meanwhile.
            self._unblock()
            self._loop.call_later(_OUT_OF_MEMORY_PAUSE, self._flush)
            return
        if not self._blocked:
            self._blocked = True
            self._loop.add_writer(self._fd, self._flush)

    def _unblock(self) -> None:
        if self._blocked:
            self._blocked = False
            self._loop.remove_writer(self._fd)

    def _send_one(self) -> int:
        if self._out:
            size = self._socket.send(self._out[0])
            self._out.popleft()
            return size
        if self._later is not None:
            return 0
        if self._acks:
            key = next(iter(self._acks))
            size = self._socket.send(self._acks[key])
            del self._acks[key]
            return size
        while self._ready:
            port = self._ready[0]
            if segment := port.peek(self._limit - wire.HEADER_SIZE):
                self._socket.sendmsg([wire.data_header(port.number, 0, segment.offset, fin=segment.fin), *segment.buffers])
                # Round robin: the next frame is another channel's.
                self._ready.rotate(-1)
                port.commit(segment)
                return wire.HEADER_SIZE + segment.size
            self._ready.popleft()
            self._waiting_ready.discard(port.number)
        return 0

    # ── reading ──

    def _read(self) -> None:
        """Take what has arrived, up to a bound."""
        self._reading = True
        try:
            self._take_batch()
        finally:
            self._reading = False
        if self._acks and not self._blocked:
            self._loop.call_soon(self._flush)

    def _take_batch(self) -> None:
        buffer = self._buffer
        budget = _BYTES_A_TURN
        for _ in range(_FRAMES_A_TURN):
            try:
                size = self._socket.recv_into(buffer)
            except BlockingIOError:
                break
            except ConnectionResetError:
                continue  # told once, when the peer closed with bytes of ours unread; its own last frames are still there
            except OSError as error:
                self._fail(SandboxEnded(f"the link to the guest agent broke: {error}"))
                return
            if not size and self._hung_up():
                self._fail(SandboxEnded("the sandbox ended", hint="create another one"))
                return
            self._take(buffer[:size])
            if self.error is not None:
                return
            budget -= size
            if budget <= 0:
                break

    def _hung_up(self) -> bool:
        # A packet may be empty, so 0 bytes alone are not the end.
        poll = select.poll()
        poll.register(self._fd, select.POLLRDHUP)
        return bool(poll.poll(0))

    def _take(self, packet: memoryview) -> None:
        try:
            frame = wire.decode(packet)
            match frame.type:
                case Type.EVENT | Type.DATA | Type.ACK if self._greeting is not None:
                    pass
                case Type.DATA:
                    self.on_activity()
                    if port := self._ports.get(frame.channel):
                        port.on_data(frame)
                case Type.ACK:
                    if port := self._ports.get(frame.channel):
                        port.on_ack(frame)
                case Type.EVENT:
                    event = messages.event(frame.payload)
                    self.on_activity()
                    if frame.channel == 0:
                        self.on_event(event)
                    elif port := self._ports.get(frame.channel):
                        port.on_event(event)
                case Type.RESPONSE:
                    self._take_answer(frame)
                case Type.REQUEST:
                    raise ProtocolError("the guest agent may not make requests")
        except ProtocolError as error:
            self._count_garbage(error)

    def _take_answer(self, frame: Frame) -> None:
        reply = self._pending.get(frame.channel)
        if reply is None or reply.done():
            return
        payload = bytes(frame.payload)
        reply.set_result(payload)
        if self._greeting is not None and self._greeting[0] == frame.channel:
            greeted, self._greeting = self._greeting[1], None
            greeted(payload)

    def _count_garbage(self, error: ProtocolError) -> None:
        self._garbage += 1
        log.warning("guest_agent_garbage", error=str(error), count=self._garbage)
        if self._garbage == GARBAGE_LIMIT:
            self._fail(SandboxEnded("the guest agent sent garbage", hint="create another sandbox", details={"reason": "agent_garbage"}))
            if self._on_garbage is not None:
                self._on_garbage(str(error))

    # ── the end ──

    def check(self) -> None:
        """Raise what ended the link, if it has ended."""
        if self.error is not None:
            raise again(self.error)

    def close(self) -> None:
        """Leave the link; the sandbox lives on and another server may take the socket."""
        self.leave(Unavailable("the server is stopping", hint="try again"))

    def leave(self, why: CorralError) -> None:
        """Use it no more; whoever waits for something on it is told why."""
        self._fail(why, quiet=True)
        self.settle()

    def settle(self) -> None:
        """Tell everybody who waits that the link has ended. Who is told by `on_end` does it, when what there is to say of the end is known; once is enough."""
        if self.error is None or self._settled.is_set():
            return
        self._settled.set()
        for reply in self._pending.values():
            if not reply.done():
                reply.set_exception(again(self.error))
        ports, self._ports = list(self._ports.values()), {}
        for port in ports:
            port.on_end(self.error)

    def _fail(self, error: CorralError, *, quiet: bool = False) -> None:
        if self.error is not None:
            return
        self.error = error
        self._loop.remove_reader(self._fd)
        self._unblock()
        if not quiet:
            self.on_end(error)


def again(error: CorralError) -> CorralError:
    """A fresh copy of an error that many callers are told: each raise adds to an exception's traceback."""
    return type(error)(error.message, hint=error.hint, details=dict(error.details))


def _name(request: Request) -> str:
    return str(request.__struct_config__.tag)


def _widen(sock: socket.socket) -> int:
    """Make the socket's buffers large enough for the largest frames; returns the largest packet it can send."""
    for forced, plain in ((_SO_SNDBUFFORCE, socket.SO_SNDBUF), (_SO_RCVBUFFORCE, socket.SO_RCVBUF)):
        try:
            sock.setsockopt(socket.SOL_SOCKET, forced, _SOCKET_BUFFER)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, plain, _SOCKET_BUFFER)
    # unix(7) does not say it, af_unix.c does: a packet may have 32 bytes fewer than the send buffer.
    return min(wire.MAX_FRAME, sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) - 32)
