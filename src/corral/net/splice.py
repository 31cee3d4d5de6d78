"""Bytes from socket to socket by splice(2), through pipes that are borrowed only while something is in them. Nothing is decrypted, copied or kept."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
from collections.abc import Callable
from enum import Enum, auto

_MOVE_NONBLOCK = 3
_F_SETPIPE_SZ = 1031
SIZE = 1 << 20
"""Bytes at a time, and of a pipe, where the kernel grants it."""
HELD = 32 << 20
"""Bytes that may wait in the pipes of one sandbox; beyond it, its connections take little at a time."""
LEAST = 16 << 10
SPARE = 32
"""Pipes kept for the next to need one."""

_spare: list[tuple[int, int]] = []


class Purse:
    """What waits in the pipes of one sandbox's connections, because whoever it is for does not read."""

    def __init__(self) -> None:
        self.held = 0

    @property
    def size(self) -> int:
        """Bytes that may be taken in one step."""
        return SIZE if self.held < HELD else LEAST


def _borrow() -> tuple[int, int]:
    if _spare:
        return _spare.pop()
    pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    with contextlib.suppress(OSError):
        fcntl.fcntl(pipe[1], _F_SETPIPE_SZ, SIZE)
    return pipe


def _give_back(pipe: tuple[int, int], *, empty: bool) -> None:
    if empty and len(_spare) < SPARE:
        _spare.append(pipe)
    else:
        os.close(pipe[0])
        os.close(pipe[1])


class _State(Enum):
    READING = auto()
    WRITING = auto()
    ENDED = auto()


class _Half:
    """One direction."""

    def __init__(self, source: socket.socket, target: socket.socket, count: Callable[[int], bool], purse: Purse, ended: Callable[[bool], None]) -> None:
        self._source, self._target, self._count, self._purse, self._ended = source, target, count, purse, ended
        self._pipe: tuple[int, int] | None = None
        self._inside = self._charged = 0
        self._state = _State.READING
        asyncio.get_running_loop().add_reader(source, self._readable)

    def _readable(self) -> None:
        try:
            if self._pipe is None:
                self._pipe = _borrow()
            moved = os.splice(self._source.fileno(), self._pipe[1], self._purse.size, flags=_MOVE_NONBLOCK)
        except BlockingIOError:
            self._release()
            return
        except OSError:
            self._end(whole=False)
            return
        if moved == 0:
            try:
                self._target.shutdown(socket.SHUT_WR)
            except OSError:
                self._end(whole=False)
                return
            self._end(whole=True)
            return
        self._inside += moved
        if not self._count(moved):
            self._end(whole=False)
            return
        self._writable()

    def _writable(self) -> None:
        loop = asyncio.get_running_loop()
        assert self._pipe is not None
        try:
            while self._inside:
                self._inside -= os.splice(self._pipe[0], self._target.fileno(), self._inside, flags=_MOVE_NONBLOCK)
        except BlockingIOError:
            self._charge(self._inside)
            if self._state is _State.READING:
                self._state = _State.WRITING
                loop.remove_reader(self._source)
                loop.add_writer(self._target, self._writable)
            return
        except OSError:
            self._end(whole=False)
            return
        self._release()
        if self._state is _State.WRITING:
            self._state = _State.READING
            loop.remove_writer(self._target)
            loop.add_reader(self._source, self._readable)

    def _charge(self, inside: int) -> None:
        self._purse.held += inside - self._charged
        self._charged = inside

    def _release(self) -> None:
        self._charge(0)
        if self._pipe is not None:
            _give_back(self._pipe, empty=not self._inside)
            self._pipe, self._inside = None, 0

    def stop(self) -> None:
        if self._state is _State.ENDED:
            return
        loop = asyncio.get_running_loop()
        (loop.remove_reader if self._state is _State.READING else loop.remove_writer)(self._source if self._state is _State.READING else self._target)
        self._state = _State.ENDED
        self._release()

    def _end(self, *, whole: bool) -> None:
        self.stop()
        self._ended(whole)


async def relay(near: socket.socket, far: socket.socket, *, up: Callable[[int], bool], down: Callable[[int], bool], purse: Purse) -> None:
    """Until both directions have ended, or one has failed. `up` and `down` are told of bytes as they pass; False ends it. The sockets stay open.

    `purse`: of the sandbox, for what waits.
    """
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    halves: list[_Half] = []
    left = 2

    def ended(whole: bool) -> None:  # noqa: FBT001
        nonlocal left
        left -= 1
        if (left == 0 or not whole) and not done.done():
            done.set_result(None)

    try:
        halves += [_Half(near, far, up, purse, ended), _Half(far, near, down, purse, ended)]
        await done
    finally:
        for half in halves:
            half.stop()
