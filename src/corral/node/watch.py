"""Watching for changes of files. Several readers share one watch of the guest; one that lost its connection finds it again for a while.

A reader's position is a number that grows: the watch's channel above, the offset in its stream below. A position of a watch that is gone, or of events that
are no longer kept, is answered by an `overflow` event: something may have been missed, look for yourself.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import deque
from collections.abc import Callable

from corral.errors import CorralError, QuotaExceeded
from corral.node.channel import Channel
from corral.node.entries import change
from corral.node.link import Link, RequestFailed, again
from corral.node.notice import Notice
from corral.node.refusals import refusal
from corral.schema.file import WatchEvent
from corral.wire import messages, requests
from corral.wire.channel import Receiver
from corral.wire.frame import ProtocolError
from corral.wire.messages import Event

WINDOW = 1 << 20
KEPT = 10_000
"""Events kept for readers that come back or are slow."""
LINGER = 60.0
"""Seconds a watch outlives its last reader."""
WATCHES = 64
"""Watches of one sandbox at once."""
_LONGEST_RECORD = 65_536
_OFFSET_BITS = 48


class Watch:
    """One watch of the guest, its newest events, and how many read them."""

    def __init__(self, link: Link, number: int, path: bytes) -> None:
        self.readers = 0
        self.error: CorralError | None = None
        self.changed = Notice()
        self.linger: asyncio.TimerHandle | None = None
        self._link = link
        self._path = path
        self._base = number << _OFFSET_BITS
        self._ends: deque[int] = deque(maxlen=KEPT)
        self._events: deque[WatchEvent] = deque(maxlen=KEPT)
        self._first = self._base
        self._rest = b""
        self._channel = Channel(link, number, self, receivers={1: Receiver(WINDOW)}, sender=None)
        self.opening: asyncio.Future[messages.Done] | None = None

    async def open(self, *, recursive: bool) -> None:
        """Returns when changes from now on are seen. Several may wait for it."""
        if self.opening is None:
            request = requests.Watch(channel=self._channel.number, path=self._path, recursive=recursive, window=WINDOW)
            self.opening = asyncio.ensure_future(self._link.request(request))
            self.opening.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            await asyncio.shield(self.opening)
        except RequestFailed as error:
            raise refusal(error.problem, self._path) from error

    def on_data(self, stream: int, payload: memoryview) -> None:
        receiver = self._channel.receivers[stream]
        lines = (self._rest + payload).split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > _LONGEST_RECORD:
            self._rest = b""
            raise ProtocolError("a record of a watch without end")
        end = receiver.expected - len(self._rest) - sum(len(line) + 1 for line in lines)
        self._channel.keep(stream, receiver.expected)
        for line in lines:
            end += len(line) + 1
            self._add(self._base + end, change(messages.record(line)))
        self.changed.set()

    def _add(self, end: int, event: WatchEvent) -> None:
        if len(self._ends) == KEPT:
            self._first = self._ends[0]
        self._ends.append(end)
        self._events.append(event)

    def on_event(self, event: Event) -> None:
        if not isinstance(event, messages.Closed):
            raise ProtocolError(f"`{type(event).__name__}` about a watch")
        if event.error is not None:
            self.error = self.error or refusal(event.error, self._path)
        self.changed.set()

    def on_end(self, error: CorralError) -> None:
        self.error = self.error or error
        self.changed.set()

    @property
    def position(self) -> int:
        """Behind the newest event."""
        return self._ends[-1] if self._ends else self._base

    def holds(self, position: int) -> bool:
        """Whether every event behind this position is still kept."""
        return self._first <= position <= self.position

    def after(self, position: int) -> tuple[int, WatchEvent] | None:
        """The first event behind a position."""
        index = bisect_right(self._ends, position)
        return (self._ends[index], self._events[index]) if index < len(self._ends) else None

    def close(self) -> None:
        if self.linger is not None:
            self.linger.cancel()
        self._channel.close()


class Watching:
    """A reader: an iterator over positions and events. `async with` opens it (errors come there) and leaves it; without, the first event does."""

    def __init__(self, watches: Watches, path: bytes, *, recursive: bool, after: int | None) -> None:
        self._watches = watches
        self._path = path
        self._recursive = recursive
        self._after = after
        self._watch: Watch | None = None
        self._position = 0
        self._missed = False
        self._closed = False

    async def __aenter__(self) -> Watching:
        await self._open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __aiter__(self) -> Watching:
        return self

    async def __anext__(self) -> tuple[int, WatchEvent]:
        watch = self._watch or await self._open()
        while not self._closed:
            if self._missed or not watch.holds(self._position):
                self._missed = False
                self._position = watch.position
                return self._position, WatchEvent(type="overflow", path="")
            if (found := watch.after(self._position)) is not None:
                self._position = found[0]
                return found
            if watch.error is not None:
                raise again(watch.error)
            await watch.changed.wait()
        raise StopAsyncIteration

    async def _open(self) -> Watch:
        watch = await self._watches.join(self._path, recursive=self._recursive)
        self._watch = watch
        if self._after is None:
            self._position = watch.position
        elif watch.holds(self._after):
            self._position = self._after
        else:
            self._missed = True
        return watch

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            if self._watch is not None:
                self._watches.leave(self._watch)
                self._watch.changed.set()


class Watches:
    """All watches of one sandbox."""

    def __init__(self, link: Link, next_channel: Callable[[], int]) -> None:
        self._link = link
        self._next_channel = next_channel
        self._watches: dict[tuple[bytes, bool], Watch] = {}

    async def join(self, path: bytes, *, recursive: bool) -> Watch:
        """The watch of a path, made if there is none. Raises `FileNotFound` and the like."""
        key = (path, recursive)
        watch = self._watches.get(key)
        if watch is None or watch.error is not None:
            if watch is not None:
                self._drop(watch)
            self._make_room()
            self._link.check()
            watch = self._watches[key] = Watch(self._link, self._next_channel(), path)
        watch.readers += 1
        if watch.linger is not None:
            watch.linger.cancel()
            watch.linger = None
        try:
            await watch.open(recursive=recursive)
        except asyncio.CancelledError:
            self.leave(watch)
            raise
        except Exception:
            self._drop(watch)
            raise
        return watch

    def leave(self, watch: Watch) -> None:
        """A reader went; the watch waits a while for it to come back."""
        watch.readers -= 1
        if not watch.readers:
            watch.linger = asyncio.get_running_loop().call_later(LINGER, self._drop, watch)

    def _make_room(self) -> None:
        if len(self._watches) < WATCHES:
            return
        unread = next((watch for watch in self._watches.values() if not watch.readers), None)
        if unread is None:
            raise QuotaExceeded(f"{WATCHES} watches are open in this sandbox", hint="watch a directory above with recursive=true")
        self._drop(unread)

    def _drop(self, watch: Watch) -> None:
        for key, known in list(self._watches.items()):
            if known is watch:
                del self._watches[key]
                watch.close()
