"""Ports inside sandboxes, reached through the guest agent's relay link: no network is needed, servers on 127.0.0.1 are reached. The guest is hostile; see docs/wire.md."""

from __future__ import annotations

import json
import secrets
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from corral.errors import CorralError
from corral.node.channel import Channel
from corral.node.link import Link, RequestFailed
from corral.node.notice import Notice
from corral.preview.duplex import Broken
from corral.wire import messages, requests
from corral.wire.channel import Receiver, Sender
from corral.wire.frame import MAX_CHANNEL, ProtocolError
from corral.wire.messages import Event

WINDOW = 512 << 10
"""Bytes of one stream that are under way at most, in each direction."""
DIAL_TIMEOUT = 15.0
HELLO_TIMEOUT = 15.0
HUSH_TIMEOUT = 1.0
_TOLD = 1024
"""Connections of which a listener tells that nobody has read of yet."""
_SMALL = 4096
_JOINED = 64 << 10


class PortClosed(Exception):
    """Nothing listens on the port."""


class PortTaken(Exception):
    """A name and port are served from outside already."""


class Unreachable(Exception):
    """The guest can't connect to its own port: its agent is overloaded, or gone."""


class Guest:
    """The relay link of one sandbox. `on_lost` is called once when it ends."""

    def __init__(self, relay: socket.socket, on_lost: Callable[[], None]) -> None:
        self._socket = relay
        self._link = Link(relay)
        self._link.on_end = lambda _error: self._end()
        self._on_lost = on_lost
        # Channels of an earlier process are closed by `open`; a random start makes meeting one of their late frames improbable.
        self._channel = secrets.randbits(30)

    async def open(self) -> None:
        """Take the link. Raises `Unreachable`."""
        try:
            await self._link.hello(requests.Hello(epoch=time.time_ns() // 1_000_000, channels=()), self._greeted, timeout=HELLO_TIMEOUT)
        except (CorralError, RequestFailed) as error:
            raise Unreachable(str(error)) from error

    def _greeted(self, greeting: messages.Greeting) -> None:
        for channel in greeting.channels:
            self._link.post(requests.Close(channel=channel.channel))

    async def dial(self, port: int) -> Stream:
        """Raises `PortClosed`, `Unreachable`."""
        return await self._stream(requests.Dial(channel=0, host="", port=port, window=WINDOW), "ECONNREFUSED")

    async def _stream(self, request: requests.Dial | requests.Accept, nobody: str) -> Stream:
        """Of a request, whose channel is chosen here. `nobody`: the code that says that there is nothing to be connected with."""
        self._channel = self._channel % MAX_CHANNEL + 1
        stream = Stream(self._link, self._channel)
        try:
            await self._link.request(msgspec.structs.replace(request, channel=self._channel), messages.Done, timeout=DIAL_TIMEOUT)
        except RequestFailed as error:
            stream.close()
            if error.problem.code == nobody:
                raise PortClosed from None
            raise Unreachable(error.problem.message or error.problem.code) from error
        except CorralError as error:
            stream.close()
            raise Unreachable(error.message) from error
        except BaseException:
            stream.close()
            raise
        return stream

    async def listen(self, name: str, port: int) -> Listener:
        """Have a name and port inside served from outside. Raises `PortTaken`, `Unreachable`."""
        self._channel = self._channel % MAX_CHANNEL + 1
        listener = Listener(self._link, self._channel)
        try:
            answer = await self._link.request(requests.Listen(channel=self._channel, name=name, port=port), messages.Listening, timeout=DIAL_TIMEOUT)
        except RequestFailed as error:
            listener.close()
            if error.problem.code == "EADDRINUSE":
                raise PortTaken from None
            raise Unreachable(error.problem.message or error.problem.code) from error
        except CorralError as error:
            listener.close()
            raise Unreachable(error.message) from error
        except BaseException:
            listener.close()
            raise
        listener.say({"address": answer.address})
        return listener

    async def accept(self, listener: Listener, connection: int) -> Stream:
        """One of which `listener` has told. Raises `PortClosed` when it waits no more, `Unreachable`."""
        request = requests.Accept(channel=0, listener=listener.number, connection=connection, window=WINDOW)
        return await self._stream(request, "ECONNABORTED")

    async def hush(self) -> None:
        """Nothing is on its way to the guest when this returns, and nothing is sent until `speak`."""
        try:
            await self._link.request(requests.Ping(), timeout=HUSH_TIMEOUT, last=True)
        except (CorralError, RequestFailed):
            self._link.hush()  # it may not answer at all, and has then nothing to be torn in the middle of

    def speak(self) -> None:
        """What waited is sent."""
        self._link.speak()

    def close(self) -> None:
        """Leave the link and its streams."""
        self._link.close()
        self._socket.close()

    def _end(self) -> None:
        self._link.settle()
        self._on_lost()


class Stream:
    """A connection to a port inside, as a `Duplex`."""

    def __init__(self, link: Link, number: int) -> None:
        self._pieces: deque[bytes | bytearray] = deque()
        self._taken = 0
        self._open = True
        self._broken: str | None = None
        self._settled = False
        self._changed = Notice()
        self._channel = Channel(link, number, self, receivers={1: Receiver(WINDOW)}, sender=Sender(WINDOW))

    # From the link

    def on_data(self, _stream: int, payload: memoryview, /) -> None:
        last = self._pieces[-1] if self._pieces else None
        # A guest that sends single bytes must not cost an object for each.
        if isinstance(last, bytearray) and len(last) + len(payload) <= _JOINED:
            last += payload
        elif payload:
            self._pieces.append(bytearray(payload) if len(payload) < _SMALL else bytes(payload))
        self._changed.set()

    def on_event(self, event: Event) -> None:
        if not isinstance(event, messages.Closed):
            raise ProtocolError(f"`{type(event).__name__}` about a relayed connection")
        self._settled = True
        if event.error is not None:
            self._fail(event.error.message or event.error.code)
        self._changed.set()

    def on_end(self, error: CorralError, /) -> None:
        self._fail(error.message)

    def _fail(self, why: str) -> None:
        self._broken = self._broken or why
        self._changed.set()

    # For us

    @property
    def _ended(self) -> bool:
        return self._channel.receivers[1].finished

    @property
    def spent(self) -> bool:
        return not self._open or self._ended or self._broken is not None or bool(self._pieces)

    async def read(self) -> bytes:
        while not self._pieces:
            if self._broken is not None and not self._ended:
                raise Broken(self._broken)
            if self._ended:
                return b""
            if not self._open:
                raise Broken("the stream was closed")
            await self._changed.wait()
        piece = self._pieces.popleft()
        self._taken += len(piece)
        if self._open and self._broken is None:
            self._channel.keep(1, self._taken)
        return piece if isinstance(piece, bytes) else bytes(piece)

    async def settled(self) -> None:
        """Until the guest has done with it: all that was written has been taken inside, or never will be."""
        while self._open and self._broken is None and not self._settled:
            await self._changed.wait()

    def offer(self, data: bytes) -> bool:
        return self._open and self._broken is None and self._channel.offer(data)

    async def write(self, data: bytes) -> None:
        if not self._open or self._broken is not None:
            raise Broken(self._broken or "the stream was closed")
        try:
            await self._channel.send(data)
        except CorralError as error:
            raise Broken(error.message) from error

    def finish(self) -> None:
        if self._open and self._broken is None:
            self._channel.finish()

    def close(self) -> None:
        if self._open:
            self._open = False
            self._channel.close()
            self._pieces.clear()
            self._fail("the stream was closed")


class Listener:
    """A name and port inside that are served from outside, as a `Duplex` that tells in JSON: first `{"address"}`, then `{"connection"}` for each that waits to be accepted."""

    def __init__(self, link: Link, number: int) -> None:
        self.number = number
        self._told: deque[bytes] = deque()
        self._broken: str | None = None
        self._changed = Notice()
        self._channel = Channel(link, number, self, receivers={}, sender=None)

    def say(self, message: dict[str, Any]) -> None:
        self._told.append(json.dumps(message).encode())
        self._changed.set()

    # From the link

    def on_data(self, _stream: int, _payload: memoryview, /) -> None:
        raise ProtocolError("data of a listener")

    def on_event(self, event: Event) -> None:
        match event:
            case messages.Incoming():
                if len(self._told) >= _TOLD:
                    self._fail("nobody takes the connections that come")
                else:
                    self.say({"connection": event.connection})
            case messages.Closed():
                self._fail("the agent does not listen any more" if event.error is None else event.error.message or event.error.code)
            case _:
                raise ProtocolError(f"`{type(event).__name__}` about a listener")

    def on_end(self, error: CorralError, /) -> None:
        self._fail(error.message)

    def _fail(self, why: str) -> None:
        self._broken = self._broken or why
        self._changed.set()

    # For us

    @property
    def spent(self) -> bool:
        return self._broken is not None

    async def read(self) -> bytes:
        while not self._told:
            if self._broken is not None:
                raise Broken(self._broken)
            await self._changed.wait()
        return self._told.popleft()

    def offer(self, _data: bytes, /) -> bool:
        return False

    async def write(self, _data: bytes, /) -> None:
        raise Broken("nothing is to be said here")

    def finish(self) -> None:
        pass

    def close(self) -> None:
        self._fail("it was closed")
        self._channel.close()
