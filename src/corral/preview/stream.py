"""A connection to a port inside, as bytes both ways over a channel of the relay link: over one link after the other when the sandbox is paused meanwhile."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from corral.errors import CorralError
from corral.node.channel import Channel
from corral.node.link import Link
from corral.node.notice import Notice
from corral.node.pieces import Pieces
from corral.preview.duplex import Broken
from corral.wire import messages, requests
from corral.wire.channel import Receiver, Sender
from corral.wire.frame import ProtocolError
from corral.wire.messages import Event

WINDOW = 512 << 10
"""Bytes of one stream that are under way at most, in each direction."""


class Stream:
    """Implements `Duplex`. It ends with its link, unless it waits for another one: then reading waits, and so does writing, which wakes the sandbox."""

    def __init__(self, link: Link, number: int) -> None:
        self.number = number
        self._pieces = Pieces()
        self._taken = 0
        self._open = True
        self._asleep = False
        self._broken: str | None = None
        self._settled = False
        self._changed = Notice()
        self._receiver, self._sender = Receiver(WINDOW), Sender(WINDOW)
        self._wake: Callable[[], Awaitable[None]] | None = None
        self._forget: Callable[[], object] = lambda: None
        self._channel = self._on(link)

    def _on(self, link: Link) -> Channel:
        return Channel(link, self.number, self, receivers={1: self._receiver}, sender=self._sender)

    # Another link

    @property
    def lives(self) -> bool:
        """Whether it has not ended in the middle."""
        return self._open and self._broken is None

    @property
    def owes(self) -> bool:
        """Whether something was said that has not left yet."""
        return self.lives and self._sender.sent < self._sender.end

    def wait_with(self, wake: Callable[[], Awaitable[None]], forget: Callable[[], object]) -> None:
        """From now on the end of the link is not its own. `forget` is called when it has ended."""
        self._wake, self._forget = wake, forget

    def have(self) -> requests.Have:
        """What is to be said of it in a greeting. What was received and not yet acknowledged comes again, and is skipped."""
        return requests.Have(channel=self.number, received={"1": self._receiver.acked})

    def go_on(self, link: Link, held: messages.Held) -> None:
        """With a link to the same sandbox, which has this of it."""
        try:
            self._sender.resume(held.received.get("0", 0))
            self._channel = self._on(link)
            self._asleep = False
            if held.ended is not None:
                self.on_event(held.ended)
        except ProtocolError as error:
            link.post(requests.Close(channel=self.number))
            self.fail(str(error))
            return
        self._channel.keep(1, self._taken)
        link.ready(self._channel)
        self._changed.set()

    def fail(self, why: str) -> None:
        """It has ended in the middle."""
        self._broken = self._broken or why
        self._forget()
        self._changed.set()

    # From the link

    def on_data(self, _stream: int, payload: memoryview, /) -> None:
        self._pieces.put(payload)
        self._changed.set()

    def on_event(self, event: Event) -> None:
        if not isinstance(event, messages.Closed):
            raise ProtocolError(f"`{type(event).__name__}` about a relayed connection")
        self._settled = True
        if event.error is not None:
            self.fail(event.error.message or event.error.code)
        self._changed.set()

    def on_end(self, error: CorralError, /) -> None:
        if self._wake is None or self._broken is not None:
            self.fail(error.message)
        else:
            self._asleep = True
            self._changed.set()

    # For us

    @property
    def _ended(self) -> bool:
        return self._receiver.finished

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
        piece = self._pieces.take()
        self._taken += len(piece)
        if self._speaks:
            self._channel.keep(1, self._taken)
        return piece

    async def settled(self) -> None:
        """Until the guest has done with it: all that was written has been taken inside, or never will be."""
        while self.lives and not self._settled:
            await self._changed.wait()

    @property
    def _speaks(self) -> bool:
        return self.lives and not self._asleep

    def offer(self, data: bytes) -> bool:
        return self._speaks and self._channel.offer(data)

    async def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            await self._awake()
            before = self._sender.end
            try:
                await self._channel.send(view)
                return
            except CorralError as error:
                if not self._asleep:
                    raise Broken(error.message) from error
                view = view[self._sender.end - before :]

    async def _awake(self) -> None:
        while self._asleep and self.lives:
            assert self._wake is not None
            await self._wake()
        if not self.lives:
            raise Broken(self._broken or "the stream was closed")

    def finish(self) -> None:
        if self._speaks:
            self._channel.finish()
        elif self._asleep:
            self._sender.finish()  # said when it goes on

    def close(self) -> None:
        if self._open:
            self._open = False
            if not self._asleep:
                self._channel.close()
            self._pieces.clear()
            self.fail("the stream was closed")
