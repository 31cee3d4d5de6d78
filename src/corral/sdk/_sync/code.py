# Generated from sdk/_async/code.py by scripts/async_to_sync.py: edit that, not this.
"""Code executed in a sandbox, in contexts that keep their variables."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import closing

from corral.errors import DeadlineExceeded, QuotaExceeded
from corral.schema.code import CodeBegin, CodeContext, CodeContextCreate, CodeContexts, CodeDropped, CodeEnd, CodeError, CodeResult, CodeRun, CodeText, Status
from corral.sdk import faults
from corral.sdk._sync import stream
from corral.sdk._sync.transport import Answer, Transport
from corral.sdk.code import Execution, Gathering, Value
from corral.sdk.retry import Lost, Unreached, delays
from corral.sdk.sse import Event

OnText = Callable[[str], object]
OnValue = Callable[[Value], object]
OnError = Callable[[CodeError], object]

START_SECONDS = 180.0
"""How long a context may take to be made."""


class Code:
    """The code interpreter of one sandbox: `sb.code("x = 1")`, `sb.code("x + 1").text`. Its image must have Jupyter kernels, as `code-interpreter` does."""

    def __init__(self, transport: Transport, sandbox: str) -> None:
        """`sandbox` is its path."""
        self._transport = transport
        self._path = sandbox + "/code"

    def __call__(
        self,
        code: str,
        *,
        context: CodeContext | str | None = None,
        language: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        on_stdout: OnText | None = None,
        on_stderr: OnText | None = None,
        on_result: OnValue | None = None,
        on_error: OnError | None = None,
    ) -> Execution:
        """The same as `run`."""
        return self.run(
            code,
            context=context,
            language=language,
            env=env,
            timeout=timeout,
            on_stdout=on_stdout,
            on_stderr=on_stderr,
            on_result=on_result,
            on_error=on_error,
        )

    def run(
        self,
        code: str,
        *,
        context: CodeContext | str | None = None,
        language: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        on_stdout: OnText | None = None,
        on_stderr: OnText | None = None,
        on_result: OnValue | None = None,
        on_error: OnError | None = None,
    ) -> Execution:
        """Execute code to its end, after what waits in its context already. Never raises for what the code raises; see `Execution.check`.

        Without a `context` it is the default one of the `language` (default: python), which the first execution has made. `env` holds for this execution.
        After `timeout` seconds it is interrupted and `DeadlineExceeded` (a `TimeoutError`) is raised, with what there was in `.partial`; variables
        stay, unless the interrupt is not heeded for some seconds. Cancelling the call, or Ctrl-C, interrupts it too. The callbacks are called as things happen.
        """
        name = context.id if isinstance(context, CodeContext) else context
        given = {"context": name, "language": language, "env": env and dict(env), "timeout": timeout}
        wanted = faults.build(CodeRun, code=code, **{field: value for field, value in given.items() if value is not None})
        gathering = Gathering()
        with closing(self._events(faults.encode(wanted), gathering)) as events:
            for event in events:
                match event.name:
                    case "stdout" | "stderr":
                        text = faults.decode(CodeText, event.data).text
                        kept, callback = (gathering.stdout, on_stdout) if event.name == "stdout" else (gathering.stderr, on_stderr)
                        kept.append(text)
                        if callback:
                            callback(text)
                    case "result":
                        result = faults.decode(CodeResult, event.data)
                        value = Value(result.data, result.main, result.omitted)
                        gathering.results.append(value)
                        if on_result:
                            on_result(value)
                    case "raised":
                        gathering.error = faults.decode(CodeError, event.data)
                        if on_error:
                            on_error(gathering.error)
                    case "dropped":
                        gathering.dropped += faults.decode(CodeDropped, event.data).bytes
                    case "end":
                        end = faults.decode(CodeEnd, event.data)
                        return _ended(gathering.end(end.status, count=end.count, seconds=end.seconds), timeout)
                    case _:  # a kind of event that this client does not know
                        pass
        raise Lost("the events ended before the execution did")

    def create_context(self, language: str = "python", *, cwd: str | None = None) -> CodeContext:
        """A new context with variables of its own, when its kernel answers. Raises `Unsupported` where the image has no kernel for the language."""
        wanted = faults.build(CodeContextCreate, language=language, **({} if cwd is None else {"cwd": cwd}))
        body = self._transport.call("POST", self._path + "/contexts", body=faults.encode(wanted), seconds=START_SECONDS)
        return faults.decode(CodeContext, body)

    def contexts(self) -> list[CodeContext]:
        """Those there are, the oldest first."""
        return faults.decode(CodeContexts, self._transport.call("GET", self._path + "/contexts")).contexts

    def restart(self, context: CodeContext | str) -> None:
        """Start its kernel anew, without the variables. What runs or waits in it ends."""
        self._transport.call("POST", self._of(context) + "/restart", safe=True, seconds=START_SECONDS)

    def interrupt(self, context: CodeContext | str) -> None:
        """Interrupt what runs in it now, if anything does; Python code gets a KeyboardInterrupt."""
        self._transport.call("POST", self._of(context) + "/interrupt", safe=True)

    def remove(self, context: CodeContext | str) -> None:
        """End it, and what runs in it."""
        self._transport.call("DELETE", self._of(context))

    def _of(self, context: CodeContext | str) -> str:
        return f"{self._path}/contexts/{faults.segment(context.id if isinstance(context, CodeContext) else context)}"

    def _events(self, body: bytes, gathering: Gathering) -> Generator[Event, None]:
        """The events of one execution, over as many connections as it takes once it is known to be there."""
        headers = [*stream.ACCEPT, (b"content-type", b"application/json")]
        answer: Answer | None = self._transport.stream("POST", self._path + "/executions", body=body, headers=headers, seconds=START_SECONDS)
        waits, last = delays(), ""
        while True:
            try:
                if answer is None:
                    query = {"context": gathering.context, "after": last}
                    answer = self._transport.stream("GET", f"{self._path}/executions/{gathering.id}/events", query=query, headers=stream.ACCEPT)
                with closing(stream.events(answer)) as events:
                    for event in events:
                        waits, last = delays(), event.id
                        if event.name == "execution":
                            begin = faults.decode(CodeBegin, event.data)
                            gathering.id, gathering.context = begin.execution, begin.context
                        else:
                            yield event
                        if event.name == "end":
                            return
                raise Lost("the server ended a stream early", hint="is it being restarted?")
            except (Lost, Unreached) as error:
                if not gathering.id:
                    raise
                self._transport.pause(waits, error, again=True)
            answer = None


def _ended(execution: Execution, timeout: float | None) -> Execution:
    if execution.status is Status.TIMEOUT:
        error = DeadlineExceeded(f"the code ran longer than {timeout:g} s and was interrupted", hint="what there was is in .partial")
        error.partial = execution
        raise error
    if execution.status is Status.REFUSED:
        raise QuotaExceeded("too many executions wait in this context", hint="wait for some of them, or use several contexts")
    return execution
