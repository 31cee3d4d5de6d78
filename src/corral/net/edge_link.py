"""The socket between server and edge process: JSON objects, each after its length (4 bytes, big endian), descriptors beside the first byte of a message.

Both ends use this class. Sending never blocks; what the kernel does not take waits, and `drained` tells when it has been taken.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

MESSAGE = 64 << 20
"""Bytes in a message at most."""
BACKLOG = 256 << 20
"""Bytes that may wait for a peer that does not read; beyond it, it counts as gone."""
FDS = 16
_READ = 256 << 10


class Link:
    """One connection. `on_message` is called with each message and its descriptors (now the callee's), `on_lost` once."""

    def __init__(self, connection: socket.socket, on_message: Callable[[dict[str, Any], list[int]], None], on_lost: Callable[[], None]) -> None:
        connection.settimeout(0)
        self._socket: socket.socket | None = connection
        self._on_message = on_message
        self._on_lost = on_lost
        self._input = bytearray()
        self._fds: list[int] = []
        self._output: deque[tuple[memoryview, list[int]]] = deque()
        self._waiting = 0
        self._drained = asyncio.Event()
        self._drained.set()
        self._reading = False
        asyncio.get_running_loop().add_reader(connection, self.poll)

    @property
    def open(self) -> bool:
        return self._socket is not None

    def poll(self) -> None:
        """Take in what has arrived, now. Whoever must not act before what was sent to it calls this first."""
        if self._reading:
            return
        self._reading = True
        try:
            while self._socket is not None and self._receive(self._socket):
                pass
        finally:
            self._reading = False

    def _receive(self, connection: socket.socket) -> bool:
        try:
            data, fds, _, _ = socket.recv_fds(connection, _READ, FDS, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return False
        except OSError:
            data, fds = b"", []
        self._fds += fds
        if not data:
            self._lose()
            return False
        self._input += data
        while len(self._input) >= 4:
            length = int.from_bytes(self._input[:4])
            if length > MESSAGE:
                self._lose()
                return False
            if len(self._input) < 4 + length:
                break
            message = json.loads(self._input[4 : 4 + length])
            del self._input[: 4 + length]
            count = int(message.pop("fds", 0))
            fds, self._fds = self._fds[:count], self._fds[count:]
            self._on_message(message, fds)
        return self._socket is not None

    def send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Raises `ConnectionResetError` when the other end is gone."""
        if self._socket is None:
            raise ConnectionResetError("the connection between server and edge process is lost")
        data = json.dumps({**message, "fds": len(fds)} if fds else message, separators=(",", ":")).encode()
        # Own copies, since the caller may close its descriptors while the message waits.
        self._output.append((memoryview(len(data).to_bytes(4) + data), [os.dup(fd) for fd in fds]))
        self._waiting += len(data)
        if self._waiting > BACKLOG:
            self._lose()
            return
        self._flush()

    async def drained(self) -> None:
        """Until all that was sent is where the other end will find it."""
        await self._drained.wait()
        if self._socket is None:
            raise ConnectionResetError("the connection between server and edge process is lost")

    def close(self) -> None:
        """Ends it without `on_lost`."""
        self._on_lost = lambda: None
        self._lose()

    def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        while self._output and self._socket is not None:
            data, fds = self._output[0]
            try:
                ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
                sent = self._socket.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                self._drained.clear()
                loop.add_writer(self._socket, self._flush)
                return
            except OSError:
                self._lose()
                return
            self._waiting -= sent
            _close(fds)
            if sent < len(data):
                self._output[0] = (data[sent:], [])
            else:
                self._output.popleft()
        if self._socket is not None:
            loop.remove_writer(self._socket)
        self._drained.set()

    def _lose(self) -> None:
        if self._socket is None:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._socket)
        loop.remove_writer(self._socket)
        self._socket.close()
        self._socket = None
        for _, fds in self._output:
            _close(fds)
        self._output.clear()
        _close(self._fds)
        self._fds = []
        self._drained.set()
        self._on_lost()


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
