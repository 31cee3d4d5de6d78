# Generated from sdk/_async/run.py by scripts/async_to_sync.py: edit that, not this.
"""Run a command to its end: one request, whose connection is also the command's life line."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from signal import SIGKILL

from corral.errors import DeadlineExceeded, NotFound, SandboxEnded
from corral.schema.process import Process, ProcessStart, Stream
from corral.schema.sandbox import Sandbox
from corral.sdk import faults
from corral.sdk._sync import stream
from corral.sdk._sync.channel import Channel
from corral.sdk._sync.transport import Transport
from corral.sdk.output import Seen
from corral.sdk.result import Result
from corral.sdk.retry import Lost, delays
from corral.sdk.sse import Event
from corral.sdk.text import Decoder

Callback = Callable[[str], object]
Sink = Callable[[Stream, bytes], object]


class Run:
    """One run under way: gathers output, hands it to callbacks, ends the process when it is interrupted."""

    def __init__(
        self,
        transport: Transport,
        sandbox: str,
        start: ProcessStart,
        *,
        on_stdout: Callback | None = None,
        on_stderr: Callback | None = None,
        sink: Sink | None = None,
    ) -> None:
        """With a `sink` the output goes there as bytes and is not gathered."""
        self._transport = transport
        self._sandbox = f"/v1/sandboxes/{sandbox}"
        self._start = start
        self._kept: dict[Stream, list[bytes]] = {Stream.STDOUT: [], Stream.STDERR: []}
        self._callbacks = {Stream.STDOUT: on_stdout, Stream.STDERR: on_stderr}
        self._decoders = {Stream.STDOUT: Decoder(), Stream.STDERR: Decoder()}
        self._sink = sink
        self._dropped = 0
        self._process: Process | None = None

    def finish(self, input: bytes | None) -> Result:
        """Run it. Whatever ends this call early (cancellation, Ctrl-C, an error in a callback) ends the process too."""
        try:
            ended = self._stream() if input is None else self._exchange(input)
        except BaseException:
            if self._process is not None:
                self._kill(self._process)
            raise
        result = self._result(ended)
        if ended.timed_out:
            error = DeadlineExceeded(f"the command ran longer than {self._start.timeout:g} s and was killed", hint="the output so far is in .partial")
            error.partial = result
            raise error
        if ended.lost:
            raise self._why_lost(result)
        return result

    def _stream(self) -> Process:
        headers = [*stream.ACCEPT, (b"content-type", b"application/json"), (b"idempotency-key", faults.new_key().encode())]
        body, query = faults.encode(self._start), {"kill_on_disconnect": True}
        waits = delays()
        seen = Seen()
        while True:
            try:
                first = stream.events(self._transport.stream("POST", self._sandbox + "/processes", query=query, body=body, headers=headers))
                self._process = _started(first)
                break
            except Lost as error:
                seen.broken = True  # it may have been started, and be ended with the connection that started it
                self._transport.pause(waits, error, again=True)
        with closing(stream.output(self._transport, f"{self._sandbox}/processes/{self._process.id}", seen, first, hold=True)) as items:
            for item in items:
                if isinstance(item, Process):
                    self._dropped = seen.dropped
                    if seen.broken and item.signal == SIGKILL and not item.timed_out:  # its life line was cut
                        raise Lost(
                            "the connection was gone for too long, and the server ended the command",
                            hint="for work that shall outlive a connection, use exec()",
                        )
                    return item
                self._take(item.stream, item.data)
        raise Lost("the output ended before the command did")

    def _exchange(self, input: bytes) -> Process:
        body = self._transport.call("POST", self._sandbox + "/processes", body=faults.encode(self._start), key=faults.new_key())
        self._process = faults.decode(Process, body)
        channel = Channel(self._transport, f"{self._sandbox}/processes/{self._process.id}", self._process)
        try:
            return channel.exchange(input, self._take)
        finally:
            self._dropped = channel.seen.dropped
            channel.close()

    def _take(self, which: Stream, data: bytes) -> None:
        if self._sink is not None:
            self._sink(which, data)
            return
        self._kept[which].append(data)
        if (callback := self._callbacks[which]) and (text := self._decoders[which].feed(data)):
            callback(text)

    def _result(self, ended: Process) -> Result:
        for which, callback in self._callbacks.items():
            if callback and (text := self._decoders[which].end()):
                callback(text)
        return Result(
            command=self._start.command or self._start.argv or "",
            stdout_bytes=b"".join(self._kept[Stream.STDOUT]),
            stderr_bytes=b"".join(self._kept[Stream.STDERR]),
            exit_code=-1 if ended.exit_code is None else ended.exit_code,
            duration=ended.duration or 0.0,
            signal=ended.signal,
            dropped=self._dropped,
        )

    def _kill(self, process: Process) -> None:
        try:
            self._transport.call("DELETE", f"{self._sandbox}/processes/{process.id}")
        except (NotFound, SandboxEnded):  # it is gone already
            pass

    def _why_lost(self, partial: Result) -> SandboxEnded:
        sandbox = faults.decode(Sandbox, self._transport.call("GET", self._sandbox))
        reason = sandbox.reason or sandbox.state
        message = f"the sandbox {sandbox.id} ended while a command ran in it: {reason}" + (f", {sandbox.detail}" if sandbox.detail else "")
        return SandboxEnded(message, details={"reason": str(reason), "partial": partial})


def _started(first: Generator[Event, None]) -> Process:
    for event in first:
        return faults.decode(Process, event.data)
    raise Lost("the server did not say whether the command was started")


def start_request(
    command: str | Sequence[str],
    *,
    stdin: bool,
    timeout: float | None = None,
    cwd: str | None = None,
    env: dict[str, str] | None = None,
    user: str | None = None,
    pty: tuple[int, int] | None = None,
    tag: str | None = None,
) -> ProcessStart:
    """The request for a command: a text goes to the sandbox's shell, a sequence runs as it is."""
    fields: dict[str, object] = {"command": command} if isinstance(command, str) else {"argv": list(command)}
    wanted = {
        "timeout": timeout,
        "cwd": cwd,
        "env": env or None,
        "user": user,
        "stdin": stdin or None,
        "tag": tag,
        "pty": pty and {"rows": pty[0], "cols": pty[1]},
    }
    return faults.build(ProcessStart, **fields, **{name: value for name, value in wanted.items() if value is not None})
