"""Bytes of files and trees on their way out of a guest (`Download`) and into it (`upload`). Flow control is the channel's: a slow end stalls only itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from corral.errors import CorralError, Unavailable
from corral.node.channel import Channel
from corral.node.link import Link, RequestFailed, again
from corral.node.notice import Notice
from corral.node.pieces import Pieces
from corral.node.refusals import refusal
from corral.wire import messages, requests
from corral.wire.channel import Receiver, Sender
from corral.wire.frame import ProtocolError
from corral.wire.messages import Event
from corral.wire.requests import Request

WINDOW = 4 << 20
STALL_TIMEOUT = 60.0
"""Seconds a guest may take to move a transfer on."""
FINISH_TIMEOUT = 600.0
"""Seconds a guest may take to put a complete upload in its place."""
_PIECE = 1 << 20

T = TypeVar("T")

_SHORTCUT_FROM = 2 << 20


class Transfer:
    """What both directions share: a channel of its own, and its end."""

    def __init__(self, link: Link, number: int, path: bytes, *, receivers: dict[int, Receiver], sender: Sender | None) -> None:
        self._link = link
        self.path = path
        self._changed = Notice()
        self._error: CorralError | None = None
        self._ending: messages.Closed | None = None
        self._open = True
        self.on_over: Callable[[], None] = lambda: None
        """Called when nothing may be done with the sandbox' file any more, whoever still waits for whom; maybe more than once."""
        self.channel = Channel(link, number, self, receivers=receivers, sender=sender)

    async def open(self, request: Request, answer: type[T]) -> T:
        """Send the opening request. When it fails nothing stays open."""
        try:
            return await self._link.request(request, answer)
        except BaseException as error:
            self.close()
            if isinstance(error, RequestFailed):
                raise refusal(error.problem, self.path) from error
            raise

    def close(self) -> None:
        """Tell the agent that we are done with it, complete or not. Idempotent."""
        if self._open:
            self._open = False
            self.channel.close()
            self.channel.fail(Unavailable("the transfer was given up"))
            self._changed.set()
            self.on_over()

    def check(self) -> None:
        """Raise what ended the transfer, if something has."""
        if self._error is not None:
            raise again(self._error)
        self.channel.check()

    def used(self) -> None:
        """The sandbox is being used, though no frame tells it."""
        self._link.on_activity()

    def on_data(self, stream: int, _payload: memoryview, /) -> None:
        raise ProtocolError(f"data on stream {stream} of an upload")

    def on_event(self, event: Event) -> None:
        if not isinstance(event, messages.Closed):
            raise ProtocolError(f"`{type(event).__name__}` about a transfer")
        self._ending = self._ending or event
        if event.error is not None:
            self._error = self._error or refusal(event.error, self.path)
            self.channel.fail(self._error)
            self.on_over()
        self._changed.set()

    def on_end(self, error: CorralError) -> None:
        self._error = self._error or error
        self._changed.set()
        self.on_over()

    async def _moved(self, timeout: float) -> None:
        """Until something comes from the guest, which is kept awake meanwhile."""
        try:
            with self._link.working():
                async with asyncio.timeout(timeout):
                    await self._changed.wait()
        except TimeoutError:
            raise stalled(timeout) from None


class Upload(Transfer):
    """Bytes into a guest."""

    def __init__(self, link: Link, number: int, path: bytes) -> None:
        super().__init__(link, number, path, receivers={}, sender=Sender(WINDOW))

    async def send(self, chunk: bytes) -> None:
        """Raises what the guest found wrong, such as `DiskFull`, as soon as it is known."""
        if len(chunk) <= self.room:
            # No room to wait for: no timer to set.
            await self.channel.send(chunk)
            return
        view = memoryview(chunk)
        while view:
            piece, view = view[:_PIECE], view[_PIECE:]
            try:
                with self._link.working():
                    async with asyncio.timeout(STALL_TIMEOUT):
                        await self.channel.send(piece)
            except TimeoutError:
                raise stalled(STALL_TIMEOUT) from None

    @property
    def room(self) -> int:
        assert self.channel.sender is not None
        return self.channel.sender.room

    async def place(self) -> bytes | None:
        """Where the host finds the file, which has all that was sent by then; None where it has to be sent on. What follows may be written there, and `landed` is to be called before `finish`."""
        assert self.channel.sender is not None
        try:
            request = requests.Direct(channel=self.channel.number, offset=self.channel.sender.end)
            return (await self._link.request(request, messages.Place, timeout=STALL_TIMEOUT)).path
        except RequestFailed:
            return None  # it is no file of the disk, or the agent is an older one; or something went wrong that the next piece will tell

    async def landed(self, size: int) -> None:
        """The file was written past the guest and has that many bytes."""
        try:
            await self._link.request(requests.Landed(channel=self.channel.number, size=size))
        except RequestFailed as error:
            raise refusal(error.problem, self.path) from error

    async def finish(self) -> messages.Closed:
        """End the stream, and wait until everything is in its place."""
        self.channel.check()
        self.channel.finish()
        while self._ending is None and self._error is None:
            await self._moved(FINISH_TIMEOUT)
        if self._error is not None:
            raise again(self._error)
        assert self._ending is not None
        return self._ending


class Download(Transfer):
    """An iterator over bytes. Close it (`aclose`) unless it was read to its end."""

    def __init__(self, link: Link, number: int, path: bytes) -> None:
        super().__init__(link, number, path, receivers={1: Receiver(WINDOW)}, sender=None)
        self._pieces = Pieces()
        self._taken = 0

    def on_data(self, _stream: int, payload: memoryview, /) -> None:
        self._pieces.put(payload)
        self._changed.set()

    def __aiter__(self) -> Download:
        return self

    async def __anext__(self) -> bytes:
        while not self._pieces:
            if self._error is not None:
                self.close()
                raise again(self._error)
            if not self._open or (self._ending is not None and self.channel.receivers[1].finished):
                self.close()
                raise StopAsyncIteration
            try:
                await self._moved(STALL_TIMEOUT)
            except BaseException:
                self.close()
                raise
        piece = self._pieces.take()
        self._taken += len(piece)
        if self._open:
            self._link.on_activity()
            self.channel.keep(1, self._taken)
        return piece

    async def aclose(self) -> None:
        self._pieces.clear()
        self.close()


Shortcut = Callable[[Upload, int, AsyncIterator[bytes]], Awaitable[int | None]]
"""Writes what follows the bytes that were sent by another way; returns where the file ends then, or None when it can't and has taken nothing."""


async def upload(
    link: Link, number: int, path: bytes, request: Callable[[int], Request], chunks: AsyncIterator[bytes], *, shortcut: Shortcut | None = None
) -> messages.Closed:
    """Send everything, and wait until the guest has put it in its place. Whatever breaks it off leaves nothing of it there.

    `request` makes the opening request for a window of that many bytes. `shortcut` is tried once for what follows the first 2 MiB.
    """
    transfer = Upload(link, number, path)
    sent = 0
    try:
        await transfer.open(request(WINDOW), messages.Done)
        async for chunk in chunks:
            await transfer.send(chunk)
            sent += len(chunk)
            if shortcut is not None and sent >= _SHORTCUT_FROM:
                if (size := await shortcut(transfer, sent, chunks)) is not None:
                    await transfer.landed(size)
                    break
                shortcut = None
        return await transfer.finish()
    finally:
        transfer.close()


def stalled(timeout: float) -> Unavailable:
    return Unavailable(f"the sandbox did not move the transfer on for {timeout:g} s", hint="it may be overloaded; try again")
