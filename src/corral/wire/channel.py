"""The two ends of a stream: offsets, acknowledgements, windows, and resuming after `hello`. No I/O, no clock.

A `Sender` keeps bytes until the peer has acknowledged them; a `Receiver` takes every byte exactly once and in order. Both survive the loss of
whatever was under way: after `hello` the sender goes back to what the receiver has (`resume`) and everything beyond is sent again.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from corral.wire.frame import DEFAULT_WINDOW, ProtocolError

_SMALL = 4096
_JOINED = 65_536
_GATHER = 64


class Segment(NamedTuple):
    """What to send next: `buffers` one after another are the `size` payload bytes from `offset` on."""

    offset: int
    buffers: list[memoryview]
    size: int
    fin: bool


class Sender:
    """The sending end of one stream. `acked` ≤ `sent` ≤ `end` are offsets: kept by the peer, under way, given to us.

    One that goes on for an earlier sender begins at the `offset` the peer has kept, and behind what it has `taken` from that one: it still has those bytes, which are not here.
    """

    __slots__ = ("_fin", "_fin_acked", "_fin_sent", "_furthest", "_limit", "_queue", "_taken", "_unacked", "_window", "acked", "end", "sent")

    def __init__(self, window: int = DEFAULT_WINDOW, *, offset: int = 0, taken: int = 0) -> None:
        self.acked = offset
        self._taken = self.sent = self.end = self._furthest = max(offset, taken)
        self._window = window
        self._limit = offset + window
        self._unacked: deque[bytearray | memoryview] = deque()
        self._queue: deque[memoryview] = deque()
        self._fin = self._fin_sent = self._fin_acked = False

    @property
    def room(self) -> int:
        """Bytes that may be appended now."""
        return max(0, self._limit - self.end)

    @property
    def closed(self) -> bool:
        """Whether `finish` was called."""
        return self._fin

    @property
    def idle(self) -> bool:
        """Whether everything given, the end included, has been sent."""
        return self.sent == self.end and self._fin_sent == self._fin

    @property
    def finished(self) -> bool:
        """Whether the peer has kept everything and, unless this link is lost, gets the stream's end."""
        return self._fin_acked

    def append(self, data: bytes | memoryview) -> None:
        """Take bytes to send, no more than `room`. They are not copied and must not change."""
        if self._fin:
            raise ValueError("the stream is finished")
        if len(data) > self.room:
            raise ValueError("more bytes than the window has room for")
        if data:
            self._queue.append(memoryview(data))
            self.end += len(data)

    def finish(self) -> None:
        """The stream ends after what was appended. Idempotent."""
        self._fin = True

    def peek(self, limit: int) -> Segment | None:
        """What can be sent now, at most `limit` bytes; None when there is nothing or the window is full."""
        limit = min(limit, self._limit - self.sent)
        buffers: list[memoryview] = []
        size = 0
        for chunk in self._queue:
            if size >= limit or len(buffers) == _GATHER:
                break
            part = chunk[: limit - size]
            buffers.append(part)
            size += len(part)
        fin = self._fin and not self._fin_sent and self.sent + size == self.end
        return Segment(self.sent, buffers, size, fin) if size or fin else None

    def commit(self, segment: Segment) -> None:
        """The segment from `peek` is under way now."""
        self._advance(self.sent + segment.size)
        self._furthest = max(self._furthest, self.sent)
        self._fin_sent = self._fin_sent or segment.fin

    def _advance(self, offset: int) -> None:
        left = offset - self.sent
        while left:
            chunk = self._queue.popleft()
            if len(chunk) > left:
                self._queue.appendleft(chunk[left:])
                chunk = chunk[:left]
            self._keep(chunk)
            left -= len(chunk)
        self.sent = offset

    def _keep(self, chunk: memoryview) -> None:
        # One-byte writes that nobody reads would cost a hundred times their size if each were kept as an object.
        if len(chunk) >= _SMALL:
            self._unacked.append(chunk)
            return
        last = self._unacked[-1] if self._unacked else None
        if isinstance(last, bytearray) and len(last) + len(chunk) <= _JOINED:
            last += chunk
        else:
            self._unacked.append(bytearray(chunk))

    def ack(self, offset: int, window: int) -> int:
        """The peer has kept everything below `offset` and takes `window` bytes more. Returns how many bytes that freed."""
        if offset > self._furthest:
            raise ProtocolError(f"ack of {offset} but only {self._furthest} bytes were sent")
        if offset > self.sent:
            self._advance(offset)  # after a resume the peer also gets what was under way before it, and need not get it again
        freed = self._release(offset)
        self._window = window
        self._limit = max(self._limit, self.acked + window)
        if self._fin_sent and self.acked == self.end:
            self._fin_acked = True
        return freed

    def resume(self, received: int) -> None:
        """After `hello`: the peer has everything below `received`, the rest is sent again."""
        if not self.acked <= received <= self._furthest:
            raise ProtocolError(f"the peer claims to have {received} bytes, not between {self.acked} and {self._furthest}")
        if received > self.sent:
            self._advance(received)
        self._release(received)
        self._queue.extendleft(memoryview(bytes(chunk) if isinstance(chunk, bytearray) else chunk) for chunk in reversed(self._unacked))
        self._unacked.clear()
        self.sent = max(received, self._taken)
        self._limit = received + self._window
        # What the peer received does not tell whether it saw the end, so the end is always sent again.
        self._fin_sent = self._fin_acked = False

    def _release(self, offset: int) -> int:
        freed = max(0, offset - self.acked)
        left = freed - min(freed, max(0, self._taken - self.acked))
        while left:
            chunk = self._unacked[0]
            if len(chunk) > left:
                self._unacked[0] = chunk[left:]
                break
            self._unacked.popleft()
            left -= len(chunk)
        self.acked += freed
        return freed


class Receiver:
    """The receiving end of one stream. `expected` is the offset of the next byte, `limit` how far the sender may go, `end` the
    stream's length once its end was received."""

    __slots__ = ("_again", "_end_acked", "acked", "end", "expected", "limit", "window")

    def __init__(self, window: int = DEFAULT_WINDOW, *, offset: int = 0) -> None:
        self.expected = self.acked = offset
        self.window = window
        self.end: int | None = None
        self.limit = offset + window
        self._again = self._end_acked = False

    def accept(self, offset: int, payload: memoryview, *, fin: bool) -> memoryview:
        """The bytes of a frame that are new (none when all are old or a gap is before them); raises `ProtocolError` beyond the window or the end."""
        end = offset + len(payload)
        if end > self.limit:
            raise ProtocolError(f"{end - self.limit} bytes beyond the window")
        if self.end is not None:
            if end > self.end or (fin and end != self.end):
                raise ProtocolError("bytes beyond the end of the stream")
            self._again = True
            return payload[:0]
        if offset > self.expected:
            return payload[:0]
        # A sender that sends what was acknowledged has not heard of it.
        self._again = self._again or offset < self.acked
        if fin and end < self.expected:
            raise ProtocolError("the stream's end is before bytes that were received")
        new = payload[self.expected - offset :]
        self.expected = max(self.expected, end)
        if fin:
            self.end = end
        return new

    def ack(self, kept: int) -> int | None:
        """The offset to acknowledge now that everything below `kept` is safe; None while an ack is not due."""
        ended = self.end is not None and kept >= self.end
        if kept - self.acked < self.window // 4 and not (self._again or (ended and not self._end_acked)):
            return None
        self.acked = kept
        self.limit = max(self.limit, kept + self.window)
        self._end_acked = ended
        self._again = False
        return kept

    def resume(self) -> int:
        """What to tell the peer in `hello`; it may send a window beyond it."""
        self.limit = max(self.limit, self.expected + self.window)
        return self.expected

    @property
    def finished(self) -> bool:
        """Whether the stream's end was received."""
        return self.end is not None
