"""An execution as one answer, for who does not follow it."""

from __future__ import annotations

from contextlib import aclosing

from corral.code import lines
from corral.code.contexts import Execution, Gap
from corral.errors import InternalError, TooLarge
from corral.schema.code import CodeError, CodeExecution, CodeResult, Status

GREATEST = 32 << 20
"""Characters of one answer."""


async def gather(execution: Execution) -> CodeExecution:
    """Raises `TooLarge`; then it still runs."""
    texts: dict[type[lines.Stdout | lines.Stderr], list[str]] = {lines.Stdout: [], lines.Stderr: []}
    results: list[CodeResult] = []
    error: CodeError | None = None
    size = dropped = 0
    async with aclosing(execution.events()) as said:
        async for _, line in said:
            match line:
                case lines.Stdout() | lines.Stderr():
                    texts[type(line)].append(line.text)
                    size += len(line.text)
                case lines.Result():
                    results.append(CodeResult(main=line.main, data={kind: lines.value(raw) for kind, raw in line.data.items()}, omitted=line.omitted))
                    size += sum(len(bytes(raw)) for raw in line.data.values())
                case lines.Error():
                    error = CodeError(name=line.name, value=line.value, traceback=line.traceback)
                case Gap():
                    dropped += line.bytes
                case lines.End():
                    return CodeExecution(
                        id=execution.id,
                        context=execution.context,
                        status=Status(line.status),
                        results=results,
                        stdout="".join(texts[lines.Stdout]),
                        stderr="".join(texts[lines.Stderr]),
                        error=error,
                        count=line.count,
                        seconds=line.seconds,
                        dropped=dropped,
                    )
                case _:
                    pass
            if size > GREATEST:
                raise TooLarge(f"the execution said more than {GREATEST} characters", hint="ask for its events with `Accept: text/event-stream`")
    raise InternalError("an execution came to no end")
