"""Streams: whatever is sent, acknowledged, lost and resumed in whatever order, the receiver gets every byte once and in order."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from corral.wire.channel import Receiver, Sender
from corral.wire.frame import ProtocolError

Packet = tuple[int, bytes, bool]


def pattern(start: int, size: int) -> bytes:
    """Bytes that tell their offset, so that a shifted one is noticed."""
    return bytes((at * 31 + at // 251) % 256 for at in range(start, start + size))


class Stream(RuleBasedStateMachine):
    """A sender and a receiver with packets under way between them; either end's process, or the link, may be replaced at any time."""

    @initialize(window=st.sampled_from([4096, 5000, 8192, 65_536]))
    def start(self, window: int) -> None:
        self.window = window
        self.sender = Sender(window)
        self.receiver = Receiver(window)
        self.data: deque[Packet] = deque()
        self.acks: deque[tuple[int, int]] = deque()
        self.spool = b""

    @rule(size=st.integers(0, 20_000))
    def give(self, size: int) -> None:
        if not self.sender.closed:
            size = min(size, self.sender.room)
            self.sender.append(pattern(self.sender.end, size))

    @precondition(lambda self: self.sender.end > 10_000)
    @rule()
    def finish(self) -> None:
        self.sender.finish()

    @rule(limit=st.sampled_from([1, 100, 4096, 262_128]), count=st.integers(1, 5))
    def send(self, limit: int, count: int) -> None:
        for _ in range(count):
            if segment := self.sender.peek(limit):
                payload = b"".join(segment.buffers)
                assert len(payload) == segment.size <= limit
                self.data.append((segment.offset, payload, segment.fin))
                self.sender.commit(segment)

    @rule(count=st.integers(1, 5))
    def deliver(self, count: int) -> None:
        for _ in range(min(count, len(self.data))):
            self._take(self.data.popleft())

    @precondition(lambda self: self.data)
    @rule(which=st.integers(0, 100))
    def deliver_twice_or_out_of_turn(self, which: int) -> None:
        self._take(self.data[which % len(self.data)])

    def _take(self, packet: Packet) -> None:
        offset, payload, fin = packet
        new = self.receiver.accept(offset, memoryview(payload), fin=fin)
        self.spool += new
        if (kept := self.receiver.ack(len(self.spool))) is not None:
            self.acks.append((kept, self.receiver.window))

    @rule(count=st.integers(1, 5))
    def acknowledge(self, count: int) -> None:
        for _ in range(min(count, len(self.acks))):
            self.sender.ack(*self.acks.popleft())

    @rule()
    def receiver_is_killed(self) -> None:
        """A new process finds the spool, says hello, and the socket still holds what was under way."""
        self.receiver = Receiver(self.window, offset=len(self.spool))
        self._hello()

    @rule()
    def link_is_replaced(self) -> None:
        """As after a restore: what was under way is gone, both ends live."""
        self.data.clear()
        self.acks.clear()
        self._hello()

    def _hello(self) -> None:
        # The peer handles everything that was sent to it before the hello.
        while self.acks:
            self.sender.ack(*self.acks.popleft())
        self.sender.resume(self.receiver.resume())

    @invariant()
    def the_prefix_is_right(self) -> None:
        if hasattr(self, "spool"):
            assert self.spool == pattern(0, len(self.spool))
            assert self.sender.sent - self.sender.acked <= self.window
            assert self.sender.acked <= len(self.spool) <= self.sender.end

    def teardown(self) -> None:
        if not hasattr(self, "spool"):
            return
        self.sender.finish()
        for _ in range(100_000):
            if self.sender.finished and self.receiver.finished:
                break
            self.send(262_128, 5)
            self.deliver(5)
            self.acknowledge(5)
        assert self.receiver.finished
        assert self.sender.finished
        assert self.spool == pattern(0, self.sender.end)
        assert self.sender.room == self.window
        super().teardown()


TestStream = Stream.TestCase
TestStream.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)


@given(st.lists(st.binary(min_size=1, max_size=3), max_size=300), st.integers(0, 300))
def test_many_small_writes_are_resent_whole(writes: list[bytes], received: int) -> None:
    sender = Sender(4096)
    for write in writes:
        sender.append(write)
        while segment := sender.peek(2):
            sender.commit(segment)
    whole = b"".join(writes)
    received = min(received, len(whole))
    sender.resume(received)
    again = b""
    while segment := sender.peek(1000):
        again += b"".join(segment.buffers)
        sender.commit(segment)
    assert again == whole[received:]


def test_a_sender_begins_behind_what_an_earlier_one_sent() -> None:
    sender = Sender(100, offset=30, taken=80)
    assert (sender.acked, sender.sent, sender.end, sender.room) == (30, 80, 80, 50)
    sender.append(b"abcdefgh")
    segment = sender.peek(100)
    assert segment is not None
    assert (segment.offset, segment.size) == (80, 8)
    sender.commit(segment)
    assert sender.ack(60, 100) == 30
    sender.resume(70)
    again = sender.peek(100)
    assert again is not None
    assert (again.offset, b"".join(again.buffers)) == (80, b"abcdefgh")
    sender.commit(again)
    assert sender.ack(83, 100) == 13
    sender.resume(83)
    rest = sender.peek(100)
    assert rest is not None
    assert (rest.offset, b"".join(rest.buffers)) == (83, b"defgh")


def test_a_sender_refuses_acks_of_what_it_never_sent() -> None:
    sender = Sender(4096)
    sender.append(b"abc")
    with pytest.raises(ProtocolError):
        sender.ack(1, 4096)
    with pytest.raises(ProtocolError):
        sender.resume(1)


def test_a_receiver_refuses_what_is_beyond_its_window_or_the_end() -> None:
    receiver = Receiver(4096)
    with pytest.raises(ProtocolError):
        receiver.accept(0, memoryview(bytes(4097)), fin=False)
    assert receiver.accept(100, memoryview(b"beyond a gap"), fin=True) == b""
    assert not receiver.finished
    assert receiver.accept(0, memoryview(b"abc"), fin=True) == b"abc"
    assert receiver.accept(0, memoryview(b"abc"), fin=True) == b""
    for offset, payload, fin in ((3, b"d", False), (0, b"ab", True)):
        with pytest.raises(ProtocolError):
            receiver.accept(offset, memoryview(payload), fin=fin)
    late = Receiver(4096, offset=10)
    with pytest.raises(ProtocolError):
        late.accept(0, memoryview(b"abc"), fin=True)


def test_the_end_is_acknowledged_again_when_it_is_sent_again() -> None:
    receiver = Receiver(4096)
    receiver.accept(0, memoryview(b"abc"), fin=True)
    assert receiver.ack(3) == 3
    assert receiver.ack(3) is None
    receiver.accept(3, memoryview(b""), fin=True)
    assert receiver.ack(3) == 3


def test_a_sender_never_goes_beyond_the_window() -> None:
    sender = Sender(4096)
    with pytest.raises(ValueError, match="room"):
        sender.append(bytes(4097))
    sender.append(bytes(4096))
    assert sender.room == 0
    segment = sender.peek(1 << 20)
    assert segment is not None
    sender.commit(segment)
    assert sender.peek(1 << 20) is None
    sender.ack(4096, 8192)
    assert sender.room == 8192
