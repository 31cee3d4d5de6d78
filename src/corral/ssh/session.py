"""A shell, a command or SFTP: a channel of SSH, joined to a process in the sandbox."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from collections.abc import Awaitable, Callable, Mapping

import asyncssh

from corral.aio import Process, Sandbox
from corral.errors import CorralError, InvalidState, Unavailable
from corral.ssh.forwarding import Flow

SHELL = 'cd "$HOME" 2>/dev/null; exec "${SHELL:-/bin/sh}" -l'
COMMAND = 'cd "$HOME" 2>/dev/null; exec "${SHELL:-/bin/sh}" -c "$1"'
"""As SSH does it: at home, by the user's own shell."""
SFTP = "/dev/.corral/sftp-server"
"""The guest agent itself, under this name: no image needs a program for SFTP."""
TAG = "ssh"
NOT_STARTED = 126
"""The exit code when there is nothing that could have one."""
AWAY_SECONDS = 300.0
"""For so long a session waits for a server that is away."""
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}\Z")


class Session(asyncssh.SSHServerSession[bytes]):
    """One channel. `sandbox` finds the sandbox; `user` is who runs it, None: the sandbox's own."""

    def __init__(self, sandbox: Callable[[], Awaitable[Sandbox]], user: str | None) -> None:
        self._sandbox = sandbox
        self._user = user
        self._channel: asyncssh.SSHServerChannel[bytes] | None = None
        self._terminal: tuple[int, int] | None = None
        self._command: str | None = None
        self._sftp = False
        self._process: Process[bytes] | None = None
        self._sized = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._aside: set[asyncio.Task[None]] = set()

    # What the client asks for

    def connection_made(self, chan: asyncssh.SSHServerChannel[bytes]) -> None:
        self._channel = chan
        self._flow = Flow(chan)

    def pty_requested(self, term_type: str, term_size: tuple[int, int, int, int], term_modes: Mapping[int, int]) -> bool:
        self._type = term_type
        self._terminal = _size(*term_size[:2])
        return True

    def terminal_size_changed(self, width: int, height: int, pixwidth: int, pixheight: int) -> None:
        self._terminal = _size(width, height)
        self._sized.set()

    def shell_requested(self) -> bool:
        return True

    def exec_requested(self, command: str) -> bool:
        self._command = command
        return True

    def subsystem_requested(self, subsystem: str) -> bool:
        self._sftp = subsystem == "sftp"
        return self._sftp

    def session_started(self) -> None:
        self._task = asyncio.create_task(self._serve())

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        self._flow.take(data)

    def eof_received(self) -> bool:
        self._flow.end()
        return True

    def break_received(self, msec: int) -> bool:
        self._signal(signal.SIGINT)
        return True

    def signal_received(self, signal: str) -> None:
        if (number := _SIGNALS.get(signal)) is not None:
            self._signal(number)

    def pause_writing(self) -> None:
        self._flow.writable(yes=False)

    def resume_writing(self) -> None:
        self._flow.writable(yes=True)

    def connection_lost(self, exc: Exception | None) -> None:
        self._flow.lose()
        if self._task is not None:
            self._task.cancel()

    def _signal(self, number: int) -> None:
        if self._process is not None:
            self._later(self._process.signal(number))

    def _later(self, doing: Awaitable[None]) -> None:
        async def do() -> None:
            try:
                await doing
            except CorralError:  # it has ended, and the sandbox with it
                pass

        task = asyncio.create_task(do())
        self._aside.add(task)
        task.add_done_callback(self._aside.discard)

    # The process

    async def _serve(self) -> None:
        assert self._channel is not None
        starting = asyncio.create_task(self._start())
        try:
            self._process = process = await asyncio.shield(starting)
        except asyncio.CancelledError:
            # The client has left already, and what is being started is nobody's.
            self._later(_hang_up_once(starting))
            raise
        except CorralError as error:
            self._complain(error)
            self._channel.exit(NOT_STARTED)
            return
        try:
            status = await self._join(process)
        except asyncio.CancelledError:
            # The client has left: what hangs on a terminal is told so, as everywhere.
            self._later(_hang_up(process))
            raise
        except (CorralError, ConnectionError) as error:
            if isinstance(error, CorralError):
                self._complain(error)
            self._channel.exit(NOT_STARTED)
            return
        if process.info.signal is not None and (name := _NAMES.get(process.info.signal)):
            self._channel.exit_with_signal(name, core_dumped=False)
        else:
            self._channel.exit(status)
        if self._sftp:
            # Its output was the client's files: nobody reads it again.
            self._later(process.delete())

    async def _start(self) -> Process[bytes]:
        assert self._channel is not None
        sandbox = await self._sandbox()
        given = {name: value for name, value in self._channel.get_environment().items() if _VARIABLE.match(name)}
        if self._terminal is not None:
            given["TERM"] = self._type or "dumb"
        if self._sftp:
            argv = [SFTP]
        elif self._command is None:
            argv = ["/bin/sh", "-c", SHELL]
        else:
            argv = ["/bin/sh", "-c", COMMAND, "sh", self._command]
        return await sandbox.exec(*argv, text=False, pty=self._terminal or False, env=given, user=self._user, tag=TAG)

    async def _join(self, process: Process[bytes]) -> int:
        aside = [asyncio.create_task(self._feed(process)), asyncio.create_task(self._resize(process))]
        drains = [asyncio.create_task(self._drain(process, errors=errors)) for errors in (False, True)]
        try:
            await asyncio.gather(*drains)
            return await process.wait()
        finally:
            for task in (*aside, *drains):
                task.cancel()
            await asyncio.gather(*aside, *drains, return_exceptions=True)

    async def _feed(self, process: Process[bytes]) -> None:
        try:
            while data := await self._flow.read():
                await process.stdin.write(data)
            if self._terminal is None:
                await process.stdin.close()
        except CorralError:  # it ended without reading all there was, or the reading of its output tells
            pass

    async def _drain(self, process: Process[bytes], *, errors: bool) -> None:
        assert self._channel is not None
        reader, write = (process.stderr, self._channel.write_stderr) if errors else (process.stdout, self._flow.write)
        away_since: float | None = None
        while True:
            try:
                data = await reader.read1()
            except Unavailable:
                # The server is being started again. The client is still here, and its output goes on where it was.
                away_since = away_since or time.monotonic()
                if time.monotonic() - away_since > AWAY_SECONDS:
                    raise
                continue
            away_since = None
            if not data:
                return
            write(data)
            await self._flow.drain()

    async def _resize(self, process: Process[bytes]) -> None:
        while True:
            await self._sized.wait()
            self._sized.clear()
            if self._terminal is not None:
                await process.resize(*self._terminal)

    def _complain(self, error: CorralError) -> None:
        assert self._channel is not None
        if not self._flow.lost:
            self._channel.write_stderr(f"corral: {error}\r\n".encode())


async def _hang_up_once(starting: asyncio.Task[Process[bytes]]) -> None:
    await _hang_up(await starting)


async def _hang_up(process: Process[bytes]) -> None:
    try:
        await process.signal(signal.SIGHUP)
        if not process.info.pty:
            await process.stdin.close()
    except InvalidState:  # it has ended
        pass
    finally:
        await process.aclose()


def _size(columns: int, rows: int) -> tuple[int, int]:
    """Rows and columns; a client that has no size of its own says 0."""
    return min(max(rows, 0), 4096) or 24, min(max(columns, 0), 4096) or 80


_SIGNALS: Mapping[str, int] = {one.name.removeprefix("SIG"): one.value for one in signal.Signals}
_NAMES: Mapping[int, str] = {number: name for name, number in _SIGNALS.items() if name not in ("CLD", "POLL", "IOT")}
