"""A process in a sandbox, shaped like `subprocess.Popen`. It lives at the server: this handle may come and go."""

from __future__ import annotations

import asyncio
import time
from signal import SIGKILL, SIGTERM
from typing import Generic, Literal, Self, TypeVar

from corral.errors import DeadlineExceeded, InvalidState, NotFound, SandboxEnded
from corral.schema.process import Process as ProcessInfo
from corral.schema.process import Signal, Stream, Terminal
from corral.sdk import faults
from corral.sdk._async.channel import Channel
from corral.sdk._async.reader import Reader, Writer
from corral.sdk._async.transport import Transport

Data = TypeVar("Data", str, bytes)

_POLL_SECONDS = 30.0
"""How long one request waits for the end of a process before the next one does."""


class Process(Generic[Data]):
    """A started command. `stdin` takes str or bytes; `stdout` and `stderr` give lines of text, or of bytes with `text=False`."""

    def __init__(self, transport: Transport, info: ProcessInfo, kind: type[Data]) -> None:
        self.info = info
        self.path = f"/v1/sandboxes/{info.sandbox}/processes/{info.id}"
        self._transport = transport
        self._channel = Channel(transport, self.path, info)
        self._stdin = Writer(self._channel) if info.stdin or info.pty else None
        self.stdout: Reader[Data] = Reader(self._channel, Stream.STDOUT, kind)
        self.stderr: Reader[Data] = Reader(self._channel, Stream.STDERR, kind)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Kills the process if it is still running."""
        await self.aclose()
        if self.returncode is None:
            await asyncio.shield(self.kill())

    def __repr__(self) -> str:
        state = "running" if self.returncode is None else f"ended with {self.returncode}"
        return f"<Process {self.info.id} {self.info.argv} {state}>"

    @property
    def id(self) -> str:
        """`pr-…`, its identity for ever."""
        return self.info.id

    @property
    def pid(self) -> int | None:
        """Its number inside the sandbox; not an identity."""
        return self.info.pid

    @property
    def args(self) -> list[str]:
        return self.info.argv

    @property
    def stdin(self) -> Writer:
        """Standard input; `InvalidState` when the process was started without."""
        if self._stdin is None:
            raise InvalidState("the process was started without standard input")
        return self._stdin

    @property
    def returncode(self) -> int | None:
        """The exit code as far as known here (see `poll`); 128 + number when a signal ended it."""
        if self._channel.ended is not None:
            self.info = self._channel.ended
        return self.info.exit_code

    async def poll(self) -> int | None:
        """Ask whether it has ended; its exit code or None."""
        if self.returncode is None:
            await self._learned(await self._transport.call("GET", self.path))
        return self.returncode

    async def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code. `DeadlineExceeded` after `timeout` seconds; the process goes on then."""
        end = None if timeout is None else time.monotonic() + timeout
        while (code := self.returncode) is None:
            left = _POLL_SECONDS if end is None else min(_POLL_SECONDS, max(0.0, end - time.monotonic()))
            await self._learned(await self._transport.call("GET", self.path + "/wait", query={"timeout": left}, seconds=left + 30))
            if self.info.running and end is not None and time.monotonic() >= end:
                raise DeadlineExceeded(f"the process {self.id} still runs after {timeout:g} s", hint="it was not killed; use kill(), or a longer timeout")
        return code

    async def communicate(self, input: str | bytes = b"", timeout: float | None = None) -> tuple[Data, Data]:
        """Write all input, close it, and read both streams to their ends; then `wait(timeout)`. A limit for the whole is `run`'s `timeout`."""
        if self._stdin is not None and input:
            await self._stdin.write(input)
        if self._stdin is not None:
            await self._stdin.close()
        out, err = await self.stdout.read(), await self.stderr.read()
        await self.wait(timeout)
        return out, err

    async def signal(self, number: int, *, to: Literal["process", "group", "tree"] = "group") -> None:
        """Send a signal to the process, its group, or everything it started. Nothing happens when it has ended."""
        request = faults.build(Signal, signal=int(number), to=to)
        try:
            await self._transport.call("POST", self.path + "/signal", body=faults.encode(request))
        except InvalidState:  # it has ended
            pass

    async def terminate(self) -> None:
        """SIGTERM to its group."""
        await self.signal(SIGTERM)

    async def kill(self) -> None:
        """SIGKILL to it and everything it started."""
        await self.signal(SIGKILL, to="tree")

    async def resize(self, rows: int, cols: int) -> None:
        """Tell its terminal the new size, in characters. Nothing happens when it has ended."""
        size = faults.build(Terminal, rows=rows, cols=cols)
        try:
            await self._transport.call("POST", self.path + "/resize", body=faults.encode(size), safe=True)
        except InvalidState:  # it has ended
            pass

    async def delete(self) -> None:
        """Kill it if it runs, and forget it and its output. Nothing happens when it is forgotten already."""
        await self.aclose()
        try:
            await self._transport.call("DELETE", self.path)
        except NotFound:
            pass

    async def aclose(self) -> None:
        """Hang up the connection of its streams; the process goes on."""
        await self._channel.aclose()

    async def _learned(self, answer: bytes) -> None:
        """What the server says of it now. An ended process' connection is given up; what is still to be read is fetched by a new one."""
        self.info = faults.decode(ProcessInfo, answer)
        if not self.info.running:
            await self._channel.rest()
        if self.info.lost:
            raise SandboxEnded(f"the sandbox {self.info.sandbox} ended under the process {self.id}", details={"process": self.id})
