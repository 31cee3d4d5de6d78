"""This program's own terminal and streams, joined to a process in a sandbox."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
import termios
import tty
from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from corral.aio import Process, Sandbox
from corral.cli.work import SIGNALS
from corral.schema.process import Stream
from corral.sdk._async.run import Run, start_request

PIECE = 64 * 1024


def size() -> tuple[int, int]:
    """Rows and columns of our terminal."""
    columns, rows = os.get_terminal_size(sys.stdout.fileno())
    return rows or 24, columns or 80  # a terminal that nobody told its size


def both() -> bool:
    """Whether a person sits at both ends."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def has_input() -> bool:
    """Whether standard input could hold anything: not a terminal, not closed, not /dev/null."""
    try:
        status = os.fstat(0)
    except OSError:
        return False
    null = Path(os.devnull).stat()
    return not os.isatty(0) and (status.st_dev, status.st_ino) != (null.st_dev, null.st_ino)


@contextmanager
def raw() -> Generator[None, None, None]:
    """Our terminal passes every key on, and is as before afterwards, whatever happens."""
    before = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


async def join(process: Process[bytes], *, feed: bool, follow_size: bool = False) -> int:
    """Pass our input in and its output out until it ends; returns its exit code."""
    try:
        async with asyncio.TaskGroup() as group:
            aside = [group.create_task(_feed(process))] if feed else []
            if follow_size:
                aside.append(group.create_task(_resize(process)))
            await asyncio.wait([group.create_task(_drain(process, descriptor)) for descriptor in (1, 2)])
            for task in aside:
                task.cancel()
        return await process.wait()
    except BaseExceptionGroup as several:
        raise several.exceptions[0] from None
    finally:
        await process.aclose()


async def watch(sandbox: Sandbox, command: list[str]) -> int:
    """Run a command without input, its output going to ours as it comes; returns its exit code. One request."""
    start = start_request(command, stdin=False)
    result = await Run(sandbox.client.transport, sandbox.id, start, sink=lambda which, data: write(1 if which is Stream.STDOUT else 2, data)).finish(None)
    return result.exit_code


def environment() -> dict[str, str]:
    """What programs need to know of our terminal."""
    return {name: os.environ[name] for name in ("TERM", "COLORTERM", "LANG") if name in os.environ}


async def _drain(process: Process[bytes], descriptor: int) -> None:
    reader = process.stdout if descriptor == 1 else process.stderr
    while piece := await reader.read1():
        write(descriptor, piece)


def write(descriptor: int, data: bytes) -> None:
    """All of it. A reader that is slow slows us down, and with us the stream."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


async def _feed(process: Process[bytes]) -> None:
    from corral.errors import InvalidState

    try:
        async for piece in own_input():
            await process.stdin.write(piece)
        await process.stdin.close()
    except InvalidState:  # it ended without reading all we had, as `head` does
        pass


async def own_input() -> AsyncGenerator[bytes, None]:
    """What comes on our standard input, without holding anything else up."""
    kind = os.fstat(0).st_mode
    if not (stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind) or os.isatty(0)):  # files and devices such as /dev/zero can't be waited for
        while piece := await asyncio.to_thread(os.read, 0, PIECE):
            yield piece
        return
    loop = asyncio.get_running_loop()
    while True:
        arrived: asyncio.Future[bytes] = loop.create_future()
        loop.add_reader(0, _read_into, arrived)
        try:
            piece = await arrived
        finally:
            loop.remove_reader(0)
        if not piece:
            return
        yield piece


def _read_into(arrived: asyncio.Future[bytes]) -> None:
    """Read where readiness is reported: a little later it may no longer be true, and the whole program would stand still."""
    if not arrived.done():
        try:
            arrived.set_result(os.read(0, PIECE))
        except OSError as error:
            arrived.set_exception(error)


async def _resize(process: Process[bytes]) -> None:
    changed, loop = asyncio.Event(), asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGWINCH, changed.set)
    try:
        while True:
            await changed.wait()
            changed.clear()
            await process.resize(*size())
    finally:
        loop.remove_signal_handler(signal.SIGWINCH)


@contextmanager
def signals_passed_on(process: Process[bytes]) -> Generator[None, None, None]:
    """SIGINT, SIGTERM and SIGHUP go to the process; the second SIGINT kills it."""
    loop, tasks, interrupts = asyncio.get_running_loop(), set[asyncio.Task[None]](), count(1)

    def arrived(number: int) -> None:
        again = number == signal.SIGINT and next(interrupts) > 1
        task = asyncio.ensure_future(process.kill() if again else process.signal(number))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    for number in SIGNALS:
        loop.add_signal_handler(number, arrived, number)
    try:
        yield
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)


async def show_kept(process: Process[bytes]) -> None:
    """What a running process has written so far."""
    left = {1: process.info.stdout_offset - process.info.stdout_start, 2: process.info.stderr_offset - process.info.stderr_start}
    for descriptor, reader in ((1, process.stdout), (2, process.stderr)):
        while left[descriptor] > 0 and (piece := await reader.read1()):
            write(descriptor, piece[: left[descriptor]])
            left[descriptor] -= len(piece)
    await process.aclose()
