"""Ports inside sandboxes, reached through the guest agent's relay link: no network is needed, servers on 127.0.0.1 are reached, and what is connected goes on when a paused sandbox comes back
with another link. The guest is hostile; see docs/wire.md."""

from __future__ import annotations

import json
import secrets
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from corral.errors import CorralError
from corral.node.channel import Channel
from corral.node.link import Link, RequestFailed
from corral.node.notice import Notice
from corral.preview.duplex import Broken
from corral.preview.stream import WINDOW, Stream
from corral.wire import messages, requests
from corral.wire.frame import MAX_CHANNEL, ProtocolError
from corral.wire.messages import Event

DIAL_TIMEOUT = 15.0
HELLO_TIMEOUT = 15.0
HUSH_TIMEOUT = 10.0
"""Seconds a guest may take to read what was sent to it; whoever saves it waits longer for its agent to be quiet."""
_TOLD = 1024
"""Connections of which a listener tells that nobody has read of yet."""


class PortClosed(Exception):
    """Nothing listens on the port."""


class PortTaken(Exception):
    """A name and port are served from outside already."""


class Unreachable(Exception):
    """The guest can't connect to its own port: its agent is overloaded, or gone."""


class Left(Unreachable):
    """Its link has ended: perhaps it was paused."""


class Guest:
    """One sandbox by its relay link. `on_lost` is called when that ends; connections that were dialed then wait for `come_back`, or for `close`.

    Who has something to say on one of them calls `wake`, which raises `Broken` when the sandbox does not come back.
    """

    def __init__(self, relay: socket.socket, on_lost: Callable[[], None], wake: Callable[[], Awaitable[None]]) -> None:
        self._on_lost = on_lost
        self._wake = wake
        self._streams: dict[int, Stream] = {}
        self._use(relay)
        # Channels of an earlier process are closed by `open`; a random start makes meeting one of their late frames improbable.
        self._channel = secrets.randbits(30)

    @property
    def connected(self) -> bool:
        """Whether there are connections that can wait."""
        return bool(self._streams)

    @property
    def owes(self) -> bool:
        """Whether something was said on them that waits for a link."""
        return any(stream.owes for stream in self._streams.values())

    @property
    def reached(self) -> bool:
        """Whether its link lives."""
        return self._link.error is None

    def _use(self, relay: socket.socket) -> None:
        self._socket = relay
        self._link = Link(relay)
        self._link.on_end = lambda _error: self._end()

    async def open(self) -> None:
        """Take the link, and what of our connections is behind it. Raises `Unreachable`."""
        have = [stream.have() for stream in self._streams.values()]
        try:
            await self._link.hello(requests.Hello(epoch=time.time_ns() // 1_000_000, channels=have), self._greeted, timeout=HELLO_TIMEOUT)
        except (CorralError, RequestFailed) as error:
            raise Unreachable(str(error)) from error

    async def come_back(self, relay: socket.socket) -> None:
        """The sandbox runs again, with this link. Raises `Unreachable`."""
        self._leave()
        self._use(relay)
        await self.open()

    def _greeted(self, greeting: messages.Greeting) -> None:
        held = {channel.channel: channel for channel in greeting.channels}
        for number, stream in list(self._streams.items()):
            if (one := held.pop(number, None)) is None:
                stream.fail("the connection is not there any more")
            else:
                stream.go_on(self._link, one)
        for number in held:
            self._link.post(requests.Close(channel=number))

    async def dial(self, port: int) -> Stream:
        """Raises `PortClosed`, `Unreachable`, `Left`."""
        stream = await self._stream(requests.Dial(channel=0, host="", port=port, window=WINDOW), "ECONNREFUSED")
        if stream.lives:
            self._streams[stream.number] = stream
            stream.wait_with(self._wake, lambda: self._streams.pop(stream.number, None))
        return stream

    async def _stream(self, request: requests.Dial | requests.Accept, nobody: str) -> Stream:
        """Of a request, whose channel is chosen here. `nobody`: the code that says that there is nothing to be connected with."""
        self._channel = self._channel % MAX_CHANNEL + 1
        link = self._link
        stream = Stream(link, self._channel)
        try:
            await link.request(msgspec.structs.replace(request, channel=self._channel), messages.Done, timeout=DIAL_TIMEOUT)
        except RequestFailed as error:
            stream.close()
            if error.problem.code == nobody:
                raise PortClosed from None
            raise Unreachable(error.problem.message or error.problem.code) from error
        except CorralError as error:
            stream.close()
            raise (Unreachable if link.error is None else Left)(error.message) from error
        except BaseException:
            stream.close()
            raise
        return stream

    async def listen(self, name: str, port: int) -> Listener:
        """Have a name and port inside served from outside. Raises `PortTaken`, `Unreachable`, `Left`."""
        self._channel = self._channel % MAX_CHANNEL + 1
        link = self._link
        listener = Listener(link, self._channel)
        try:
            answer = await link.request(requests.Listen(channel=self._channel, name=name, port=port), messages.Listening, timeout=DIAL_TIMEOUT)
        except RequestFailed as error:
            listener.close()
            if error.problem.code == "EADDRINUSE":
                raise PortTaken from None
            raise Unreachable(error.problem.message or error.problem.code) from error
        except CorralError as error:
            listener.close()
            raise (Unreachable if link.error is None else Left)(error.message) from error
        except BaseException:
            listener.close()
            raise
        listener.say({"address": answer.address})
        return listener

    async def accept(self, listener: Listener, connection: int) -> Stream:
        """One of which `listener` has told. Raises `PortClosed` when it waits no more, `Unreachable`, `Left`."""
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

    def close(self, why: str) -> None:
        """Leave the link and end its connections: the sandbox does not come back."""
        self._leave()
        for stream in list(self._streams.values()):
            stream.fail(why)

    def _leave(self) -> None:
        self._link.close()
        self._socket.close()

    def _end(self) -> None:
        self._link.settle()
        self._on_lost()


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
