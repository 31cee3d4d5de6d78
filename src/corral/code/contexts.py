"""Contexts of sandboxes: found among their processes, made when they are needed; and executions in them. Nothing is remembered here that the processes do not tell."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Literal

from corral.code import lines, start
from corral.code.lines import Line, Nonsense
from corral.control.ports import Chunk, ProcessBook
from corral.errors import CorralError, InvalidState, NotExecutable, NotFound, QuotaExceeded, SandboxEnded, Unavailable, Unsupported
from corral.ids import is_id, new_id
from corral.schema.code import CodeContext, CodeContextCreate, CodeRun
from corral.schema.process import Process

CONTEXTS = 64
"""Contexts that one sandbox may have at once."""
START_SECONDS = 150.0
"""How long a kernel may take to start, or to start again."""
ORDER_SECONDS = 30.0
"""How long a context may take to read an order."""
GARBAGE = 16
"""Lines without sense among those of one execution, after which nothing more is read."""
_LARGE = 256 << 10
"""Bytes of a line that take milliseconds to read."""


class Contexts:
    """Of all sandboxes of one server."""

    def __init__(self, book: Callable[[str], ProcessBook]) -> None:
        """`book` gives the processes of a sandbox."""
        self._book = book
        self._making: dict[tuple[str, str], asyncio.Task[Process]] = {}

    def list(self, sandbox: str) -> list[CodeContext]:
        """Those that run, the oldest first."""
        return [_described(process) for process in self._running(sandbox)]

    async def create(self, sandbox: str, wanted: CodeContextCreate) -> CodeContext:
        """Returns when its kernel answers. Raises `Unsupported` where the image has no such kernel, `FileNotFound` for the cwd."""
        return _described(await self._start(sandbox, wanted.language, wanted.cwd, default=False))

    async def default(self, sandbox: str, language: str) -> CodeContext:
        """The default context of a language; the first one to ask has it made."""
        return _described(await self._default(sandbox, language))

    def warm(self, sandbox: str, languages: Sequence[str]) -> None:
        """Have default contexts made, without waiting for them. What goes wrong is told to who asks for them."""
        for language in languages:
            self._begin(sandbox, language)

    async def execute(self, sandbox: str, wanted: CodeRun) -> Execution:
        """Have code executed when its turn has come. Follow its `events`; it goes on whether or not somebody does, until `stop`."""
        process = self._find(sandbox, wanted.context) if wanted.context is not None else await self._default(sandbox, wanted.language or "python")
        order: dict[str, object] = {"op": "execute", "code": wanted.code}
        if wanted.env:
            order["env"] = wanted.env
        if wanted.timeout is not None:
            order["timeout"] = wanted.timeout
        execution = Execution(self._book(sandbox), process.id, new_id("ex"), process.stdout_offset)
        await execution.order(order)
        return execution

    def execution(self, sandbox: str, context: str, id: str, after: int) -> Execution:
        """One that was begun, from an offset on. That it is there is only known by what its context says."""
        process = self._book(sandbox).get(context)
        if start.language_of(process) is None or not is_id(id, "ex"):
            raise NotFound(f"there is no execution {id} in a code context {context}", details={"context": context})
        return Execution(self._book(sandbox), process.id, id, min(after, process.stdout_offset))

    async def restart(self, sandbox: str, context: str) -> None:
        """Start its kernel anew, without the variables; what runs or waits in it ends as `restarted`."""
        process = self._find(sandbox, context)
        asked = Execution(self._book(sandbox), process.id, new_id("ex"), process.stdout_offset)
        await asked.order({"op": "restart"})
        async with asyncio.timeout(START_SECONDS):
            async for _, line in asked.lines():
                if isinstance(line, lines.Restarted) and line.id == asked.id:
                    return

    async def interrupt(self, sandbox: str, context: str) -> None:
        """Interrupt what runs in it now, if anything does."""
        process = self._find(sandbox, context)
        await _order(self._book(sandbox), process.id, {"op": "stop", "id": None})

    async def remove(self, sandbox: str, context: str) -> None:
        """End it, and what runs in it."""
        await self._book(sandbox).forget(self._find(sandbox, context).id)

    def _running(self, sandbox: str) -> list[Process]:
        return [process for process in self._book(sandbox).list() if process.running and start.language_of(process) is not None]

    def _find(self, sandbox: str, id: str) -> Process:
        process = next((process for process in self._running(sandbox) if process.id == id), None)
        if process is None:
            raise NotFound(f"there is no code context {id} in this sandbox", hint="it may have been removed; list those there are", details={"context": id})
        return process

    async def _default(self, sandbox: str, language: str) -> Process:
        made = self._begin(sandbox, language)
        return made if isinstance(made, Process) else await asyncio.shield(made)

    def _begin(self, sandbox: str, language: str) -> Process | asyncio.Task[Process]:
        """The default context, or its making."""
        key = sandbox, language
        if (task := self._making.get(key)) is None:
            for process in self._running(sandbox):
                if start.is_default(process) and start.language_of(process) == language:
                    return process
            task = self._making[key] = asyncio.get_running_loop().create_task(self._start(sandbox, language, None, default=True))
            task.add_done_callback(lambda task: self._made(key, task))
        return task

    def _made(self, key: tuple[str, str], task: asyncio.Task[Process]) -> None:
        del self._making[key]
        if not task.cancelled():
            task.exception()  # nobody may be waiting any more

    async def _start(self, sandbox: str, language: str, cwd: str | None, *, default: bool) -> Process:
        if len(self._running(sandbox)) >= CONTEXTS:
            raise QuotaExceeded(f"{CONTEXTS} code contexts are there in this sandbox", hint="remove one")
        book = self._book(sandbox)
        try:
            process = await book.start(start.request(language, cwd, default=default))
        except NotExecutable as error:
            raise Unsupported("this image has no python3, which the code interpreter needs", hint="use the image code-interpreter") from error
        try:
            async with asyncio.timeout(START_SECONDS):
                await book.write_stdin(process.id, start.program())
                await _ready(book, process.id)
        except TimeoutError:
            await book.forget(process.id)
            raise Unavailable(f"the kernel for {language} did not start within {START_SECONDS:g} s", hint="give the sandbox more cpu or memory") from None
        except BaseException:
            with suppress(CorralError):  # its sandbox may have ended
                await asyncio.shield(book.forget(process.id))
            raise
        return book.get(process.id)


@dataclass(frozen=True)
class Execution:
    """One execution, or another order that is answered by lines with its id. `offset`: where in what the context says its lines begin."""

    book: ProcessBook
    context: str
    id: str
    offset: int

    async def order(self, order: dict[str, object]) -> None:
        await _order(self.book, self.context, {"id": self.id, **order})

    async def stop(self) -> None:
        """Interrupt it, or take it out of the queue. Nothing happens when it has ended, or its sandbox."""
        with suppress(CorralError):
            await self.order({"op": "stop"})

    async def lines(self) -> AsyncGenerator[tuple[int, Line | Gap]]:
        """What the context says from its order on, of whomever, and the offset after each; ends when the context does."""
        splitter, garbage, first = lines.Splitter(self.offset), 0, True
        async with aclosing(_output(self.book, self.context, self.offset)) as chunks:
            async for chunk in chunks:
                if chunk.dropped:
                    splitter.gap(chunk.dropped)
                    yield chunk.offset, Gap(chunk.dropped)
                for position, raw in splitter.feed(chunk.data):
                    try:
                        yield position, lines.decode(raw) if len(raw) < _LARGE else await asyncio.to_thread(lines.decode, raw)
                    except Nonsense:
                        # The first may be the rest of a line that was being said.
                        garbage += not first
                        if garbage >= GARBAGE:
                            raise
                    first = False

    async def events(self) -> AsyncGenerator[tuple[int, Line | Gap]]:
        """The lines of this execution, up to its end, and the offset after each. Raises `InvalidState` when the context ended before it."""
        async with aclosing(self.lines()) as said:
            async for position, line in said:
                match line:
                    case lines.Unable():
                        raise unable(line.reason)
                    case lines.Begin() | lines.Stdout() | lines.Stderr() | lines.Result() | lines.Error() | lines.Count() | lines.End():
                        if line.id == self.id:
                            yield position, line
                        if isinstance(line, lines.End) and line.id == self.id:
                            return
                    case Gap():
                        yield position, line
                    case lines.Ready() | lines.Died() | lines.Restarted():
                        pass
        yield self.offset, lines.End(self.id, _how_ended(self.book, self.context), 0.0)


@dataclass(frozen=True)
class Gap:
    """So many bytes of lines are gone, since the reader was slower than the context by all that is kept."""

    bytes: int


def unable(reason: str) -> Unsupported:
    return Unsupported(f"no code can be executed here: {reason}", hint="use the image code-interpreter, or install what is missing")


async def _order(book: ProcessBook, context: str, order: dict[str, object]) -> None:
    try:
        async with asyncio.timeout(ORDER_SECONDS):
            await book.write_stdin(context, json.dumps(order).encode() + b"\n")
    except TimeoutError:
        raise Unavailable(f"the code context {context} takes no orders", hint="it may be stopped; remove it and create another one") from None
    except InvalidState as error:
        raise NotFound(f"the code context {context} has ended", hint="create another one", details={"context": context}) from error


async def _output(book: ProcessBook, id: str, offset: int) -> AsyncGenerator[Chunk]:
    async for item in book.raw_output(id, offset, None):
        if isinstance(item, Process):
            return
        yield item


async def _ready(book: ProcessBook, id: str) -> None:
    async for _, line in Execution(book, id, "", 0).lines():
        match line:
            case lines.Ready():
                return
            case lines.Unable():
                raise unable(line.reason)
            case _:
                pass
    ended = book.get(id)
    if ended.lost:
        raise SandboxEnded(f"the sandbox {ended.sandbox} ended while a kernel was started in it")
    tail = [chunk.data async for chunk in _stderr(book, id)]
    words = b"".join(tail)[-1000:].decode(errors="replace").strip().splitlines()
    raise unable(words[-1] if words else f"its process ended with {ended.exit_code}")


async def _stderr(book: ProcessBook, id: str) -> AsyncGenerator[Chunk]:
    async for item in book.raw_output(id, None, 0, follow=False):
        if isinstance(item, Process):
            return
        yield item


def _how_ended(book: ProcessBook, context: str) -> Literal["restarted", "died"]:
    """What became of an execution whose context has ended. Raises `SandboxEnded`."""
    try:
        process = book.get(context)
    except NotFound:
        return "restarted"  # it was removed
    if process.lost:
        raise SandboxEnded(f"the sandbox {process.sandbox} ended while code was executed in it", details={"context": context})
    return "died"


def _described(process: Process) -> CodeContext:
    return CodeContext(
        id=process.id, language=start.language_of(process) or "", cwd=process.cwd, default=start.is_default(process), created_at=process.started_at
    )
