# Generated from sdk/_async/channel.py by scripts/async_to_sync.py: edit that, not this.
"""The attach WebSocket of a process: standard input out, output in, over as many connections as it takes.

There is no background task or thread. Whoever waits for something reads the connection for everybody: one at a time, the others are
woken when their part has come.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator
from typing import assert_never

import httpcore2

from corral.errors import InvalidState
from corral.schema.process import Process, Stream
from corral.sdk import channel, faults
from corral.sdk._sync import stream
from corral.sdk._sync.transport import QUIET_SECONDS, Transport, network
from corral.sdk.channel import Kind, Ledger
from corral.sdk.output import Chunk, Seen, Unread
from corral.sdk.retry import Lost, delays
from corral.sdk.websocket import Closed, WebSocket

WINDOW = 1024 * 1024
"""Bytes of standard input under way before a writer waits: what the guest agent takes without its process reading."""
PIECE = 64 * 1024
_READ = 256 * 1024


class Channel:
    """Input and output of one process."""

    def __init__(self, transport: Transport, path: str, process: Process) -> None:
        self.seen = Seen(process.stdout_start, process.stderr_start)
        self.ended: Process | None = None
        self._transport = transport
        self._path = path
        self._ledger = Ledger(process.stdin_offset)
        self._line: Line | None = None
        self._waits = delays()
        self._reading = False
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self._unread = {Stream.STDOUT: Unread(), Stream.STDERR: Unread()}
        self._behind: dict[Stream, int] = {}
        self._aside: dict[Stream, Generator[Chunk | Process, None]] = {}

    def take(self, which: Stream) -> bytes:
        """The next bytes of a stream as they come; empty at its end."""
        unread = self._unread[which]
        self._until(lambda: bool(unread or self.ended or which in self._behind))
        if unread:
            return unread.take()
        return self._catch_up(which) if which in self._behind else b""

    def write(self, data: bytes) -> None:
        """Send standard input; waits while more than `WINDOW` is not yet taken."""
        for start in range(0, len(data), PIECE):
            if self._ledger.closed:
                raise InvalidState("standard input is closed")
            if not self._offer(data[start : start + PIECE]):
                raise InvalidState("the process has ended and reads nothing any more")

    def close_stdin(self) -> None:
        """End standard input and wait until the server has all of it."""
        self._say_eof()
        self.flush()

    def flush(self) -> None:
        """Wait until the server has all that was written."""
        self._until(lambda: self.ended is not None or self._ledger.pending == 0)

    def exchange(self, data: bytes, on_chunk: Callable[[Stream, bytes], object]) -> Process:
        """Write `data` and the end of input, and give all output to `on_chunk`; returns the ended process."""
        pieces = deque(data[start : start + PIECE] for start in range(0, len(data), PIECE))
        while self.ended is None:
            while pieces and self._ledger.pending < WINDOW and self._offer(pieces[0]):
                pieces.popleft()
            if not pieces:
                self._say_eof()
            self._until(lambda: bool(self.ended or any(self._unread.values()) or (pieces and self._ledger.pending < WINDOW)))
            for which, unread in self._unread.items():
                while unread:
                    on_chunk(which, unread.take())
        return self.ended

    def resize(self, rows: int, cols: int) -> None:
        with self._sending:
            self._send(channel.resize(rows, cols))

    def rest(self) -> None:
        """Hang up unless somebody is reading."""
        if not self._reading:
            self.close()

    def close(self) -> None:
        """Hang up. The process goes on."""
        for parts in self._aside.values():
            parts.close()
        if self._line is not None:
            line, self._line = self._line, None
            line.close()

    def _offer(self, data: bytes) -> bool:
        """Send one piece of standard input when there is room; whether the process was there to take it."""
        self._until(lambda: self.ended is not None or self._ledger.pending < WINDOW)
        if self.ended:
            return False
        with self._sending:
            self._send(self._ledger.add(data))
        return True

    def _say_eof(self) -> None:
        with self._sending:
            if not self._ledger.closed and not self.ended:
                self._ledger.closed = True
                self._send(channel.eof(self._ledger.end))

    def _until(self, reached: Callable[[], bool]) -> None:
        """Read the connection, or wait for who does, until it has brought what is wanted."""
        while True:
            with self._changed:
                while not reached() and self._reading:
                    self._changed.wait()
                if reached():
                    return
                self._reading = True
            try:
                message = self._receive()
                self._arrived(message)
            finally:
                with self._changed:
                    self._reading = False
                    self._changed.notify_all()
            if self.ended:
                self.close()

    def _arrived(self, message: channel.Message) -> None:
        match message.kind:
            case Kind.STDOUT:
                self._keep(Stream.STDOUT, message)
            case Kind.STDERR:
                self._keep(Stream.STDERR, message)
            case Kind.EXIT:
                self.ended = faults.decode(Process, message.data)
            case Kind.STDIN_ACK:
                self._ledger.ack(message.offset)
            case Kind.DROPPED:  # the next offset shows the gap
                pass
            case _:
                assert_never(message.kind)

    def _keep(self, which: Stream, message: channel.Message) -> None:
        chunk = self.seen.take(which, message.offset, message.data)
        if chunk is None or which in self._behind:
            return
        if not self._unread[which].put(chunk.data):
            self._behind[which] = chunk.offset

    def _catch_up(self, which: Stream) -> bytes:
        """A stream that was left unread for too long goes on over a connection of its own."""
        if which not in self._aside:
            seen = Seen(self.seen.at[Stream.STDOUT], self.seen.at[Stream.STDERR])
            seen.at[which] = self._behind[which]
            self._aside[which] = stream.output(self._transport, self._path, seen)
        for item in self._aside[which]:
            if isinstance(item, Chunk) and item.stream == which:
                return item.data
        return b""

    def _receive(self) -> channel.Message:
        while True:
            line = None
            try:
                with self._sending:
                    line = self._connected()
                message = channel.parse(line.receive())
                self._waits = delays()
                return message
            except Lost as error:
                self._drop(line)
                self._transport.pause(self._waits, error, again=True)

    def _send(self, message: bytes) -> None:
        """Send on the connection there is; on a fresh one the ledger has been sent already. Called with `_sending` held."""
        while True:
            fresh, line = self._line is None, self._line
            try:
                line = self._connected()
                if not (fresh and message[0] in (channel.Order.STDIN, channel.Order.EOF)):
                    line.send(message)
                return
            except Lost as error:
                self._drop(line)
                self._transport.pause(self._waits, error, again=True)

    def _connected(self) -> Line:
        """The connection, opened at what was seen so far, with unacknowledged input sent again. Called with `_sending` held."""
        if self._line is None:
            if self._ledger.pending:  # some of it may have arrived, and only its acknowledgement was lost
                before = self._ledger.acked
                self._ledger.ack(faults.decode(Process, self._transport.call("GET", self._path)).stdin_offset)
                if self._ledger.acked > before:
                    self._waits = delays()
            line = connect(self._transport, self._path + "/attach", self.seen.query())
            try:
                for message in self._ledger.again():
                    line.send(message)
            except BaseException:
                line.close()
                raise
            self._line = line
        return self._line

    def _drop(self, line: Line | None) -> None:
        if line is not None:
            line.close()
            if self._line is line:
                self._line = None


class Line:
    """One WebSocket connection."""

    def __init__(self, network_stream: httpcore2.NetworkStream, protocol: WebSocket, url: str) -> None:
        self._stream = network_stream
        self._protocol = protocol
        self._url = url
        self._ready: deque[bytes | Closed] = deque()
        self._writing = threading.Lock()

    def send(self, message: bytes) -> None:
        """Send one message."""
        with self._writing:
            self._write(self._protocol.message(message))

    def _write(self, data: bytes) -> None:
        """Write, and after it what the protocol has to answer meanwhile. If this is interrupted a frame may be cut: the connection is of no use any more."""
        try:
            with network(self._url):
                while data:
                    self._stream.write(data, QUIET_SECONDS)
                    data = self._protocol.take_outgoing()
        except BaseException:
            self.close()
            raise

    def receive(self) -> bytes:
        """The next message."""
        while not self._ready:
            with network(self._url):
                data = self._stream.read(_READ, QUIET_SECONDS)
                if not data:
                    raise Lost("the server hung up")
                self._ready.extend(self._protocol.feed(data))
            if self._protocol.outgoing and not self._writing.locked():  # whoever writes sends it along: reading must not wait for a server that reads no more
                with self._writing:
                    self._write(self._protocol.take_outgoing())
        message = self._ready.popleft()
        if isinstance(message, Closed):
            raise faults.from_close(message.code, message.reason)
        return message

    def close(self) -> None:
        self._stream.close()


def connect(transport: Transport, path: str, query: dict[str, int]) -> Line:
    protocol = WebSocket()
    network_stream, headers = transport.upgrade(path, query, protocol.handshake())
    protocol.check(headers)
    return Line(network_stream, protocol, transport.connection.url)
