"""One open channel on a link: its streams' positions, waiting for room, and acknowledging what its owner has kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from corral.errors import CorralError
from corral.node.link import Link, again
from corral.node.notice import Notice
from corral.wire.channel import Receiver, Segment, Sender
from corral.wire.frame import Frame, ProtocolError
from corral.wire.messages import Event
from corral.wire.requests import Close


class Owner(Protocol):
    """Who a channel's bytes and events are for. `payload` is valid during the call only."""

    def on_data(self, stream: int, payload: memoryview, /) -> None:
        """New bytes, or the stream's end: see the channel's receivers."""
        ...

    def on_event(self, event: Event) -> None: ...

    def on_end(self, _error: CorralError, /) -> None:
        """The link has ended; nothing more will come."""
        ...


class Channel:
    """The owner calls `keep` when it has stored what arrived, `send` and `finish` for the stream towards the guest, and `close` at the end."""

    def __init__(self, link: Link, number: int, owner: Owner, *, receivers: Mapping[int, Receiver], sender: Sender | None) -> None:
        self.number = number
        self.link = link
        self.receivers = dict(receivers)
        self.sender = sender
        self._owner = owner
        self._error: CorralError | None = None
        self._moved = Notice()
        link.attach(self)

    # ── what arrives ──

    def on_data(self, frame: Frame) -> None:
        receiver = self.receivers.get(frame.stream)
        if receiver is None:
            raise ProtocolError(f"data on stream {frame.stream}, which this channel does not have")
        ended = receiver.finished
        new = receiver.accept(frame.offset, frame.payload, fin=frame.fin)
        if new or receiver.finished != ended:
            self._owner.on_data(frame.stream, new)
        else:
            # What was acknowledged comes again, so that was not heard: it is said again. The owner may have nothing more to say.
            self.keep(frame.stream, receiver.expected if ended else receiver.acked)

    def on_ack(self, frame: Frame) -> None:
        if self.sender is None or frame.stream:
            raise ProtocolError(f"ack of stream {frame.stream}, on which nothing is sent")
        self.sender.ack(frame.offset, frame.window)
        self.link.ready(self)
        self._moved.set()

    def on_event(self, event: Event) -> None:
        self._owner.on_event(event)

    def on_end(self, error: CorralError) -> None:
        self._error = error
        self._moved.set()
        self._owner.on_end(error)

    def keep(self, stream: int, offset: int) -> None:
        """Everything below `offset` is safe; acknowledged when that is due."""
        receiver = self.receivers[stream]
        if (due := receiver.ack(offset)) is not None:
            self.link.ack(self.number, stream, due, receiver.window)

    # ── what is sent ──

    def peek(self, limit: int) -> Segment | None:
        return self.sender.peek(limit) if self.sender is not None else None

    def commit(self, segment: Segment) -> None:
        assert self.sender is not None
        self.sender.commit(segment)
        self._moved.set()

    async def send(self, data: bytes | memoryview) -> None:
        """Give bytes to the stream towards the guest, waiting for room. When it is cancelled, what was given is sent and the rest is not."""
        assert self.sender is not None
        self.link.on_activity()
        view = memoryview(data)
        while view:
            self.check()
            room = self.sender.room
            if not room:
                await self._moved.wait()
                continue
            self.sender.append(view[:room])
            view = view[room:]
            self.link.ready(self)

    def offer(self, data: bytes) -> bool:
        """Give the whole of it to the stream towards the guest if there is room for it now; else nothing of it."""
        assert self.sender is not None
        if self._error is not None or self.sender.room < len(data):
            return False
        self.link.on_activity()
        self.sender.append(data)
        self.link.ready(self)
        return True

    def finish(self) -> None:
        """End the stream towards the guest after what was given."""
        assert self.sender is not None
        self.sender.finish()
        self.link.ready(self)

    async def sent(self) -> None:
        """Until everything given has left this process: from then on, not even our death loses it."""
        assert self.sender is not None
        while not self.sender.idle:
            self.check()
            await self._moved.wait()

    # ── the end ──

    def check(self) -> None:
        """Raise what ended the channel, if it has ended."""
        if self._error is not None:
            raise again(self._error)

    def fail(self, error: CorralError) -> None:
        """Whoever sends is told this error from now on."""
        self._error = self._error or error
        self._moved.set()

    def close(self) -> None:
        """Tell the agent to forget the channel, and take nothing more from it."""
        self.link.detach(self.number)
        self.link.post(Close(channel=self.number))
