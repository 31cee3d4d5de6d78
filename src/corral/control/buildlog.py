"""A build as it goes on: what it prints, where it is, and how it ended."""

from __future__ import annotations

import codecs
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Literal

from corral.control.record import moment
from corral.errors import BuildFailed, CorralError, InternalError
from corral.node.notice import Notice
from corral.schema.image import Build, BuildError, BuildLog, BuildState

KEPT = 4 << 20
"""Bytes of memory that what one build says may take; the oldest goes first, and is said to be gone."""
_PIECE = 500
"""What a piece of output takes beside its text."""
TAIL = 8192
"""Characters of a step's output that its error shows."""

What = Literal["step", "cached", "note", "stdout", "stderr"]


def failed(message: str, *, step: int, text: str, before: str | None, output: str = "", exit_code: int | None = None, hint: str | None = None) -> BuildFailed:
    """The error of a step."""
    return BuildFailed(message, hint=hint, details={"step": step, "text": text, "before": before, "output": output, "exit_code": exit_code})


class Progress:
    """One build. Changed only by the task that builds."""

    def __init__(self, id: str, project: str, clock: Callable[[], float]) -> None:
        self.id = id
        self.project = project
        self.state = BuildState.RUNNING
        self.image: str | None = None
        self.error: BuildError | None = None
        self.steps = 0
        self.cached = 0
        self._clock = clock
        self._created = clock()
        self._ended: float | None = None
        self._lines: deque[BuildLog] = deque()
        self._size = 0
        self._seq = 0
        self._news = Notice()

    def say(self, stream: What, text: str, *, step: int = 0) -> None:
        """Add to the log."""
        self._seq += 1
        self._lines.append(BuildLog(seq=self._seq, at=moment(self._clock()), step=step, stream=stream, text=text))
        self._size += _weight(text)
        self.shorten(KEPT)
        self._news.set()

    def shorten(self, most: int) -> None:
        """Keep so many bytes of the log."""
        while self._size > most and self._lines:
            self._size -= _weight(self._lines.popleft().text)

    def succeed(self, image: str) -> None:
        self.image = image
        self._end(BuildState.READY)

    def fail(self, error: BaseException) -> None:
        known = error if isinstance(error, CorralError) else InternalError(f"{type(error).__name__}: {error}".rstrip(": "), hint="the server's log has more")
        details = known.details if isinstance(known, BuildFailed) else {}
        self.error = BuildError(code=known.code, message=known.message, hint=known.hint, **details)
        self._end(BuildState.FAILED)

    def _end(self, state: BuildState) -> None:
        self.state, self._ended = state, self._clock()
        self._news.set()

    def show(self) -> Build:
        return Build(
            id=self.id,
            project=self.project,
            state=self.state,
            image=self.image,
            error=self.error,
            steps=self.steps,
            cached=self.cached,
            created_at=moment(self._created),
            ended_at=None if self._ended is None else moment(self._ended),
        )

    def lines(self) -> list[BuildLog]:
        """The log so far."""
        return list(self._lines)

    async def follow(self, after: int) -> AsyncIterator[BuildLog]:
        """The log from there on, until the build has ended."""
        while True:
            ended = self.state is not BuildState.RUNNING
            for line in self._later(after) if self._seq > after else ():
                after = line.seq
                yield line
            if ended:
                return
            if self._seq <= after and self.state is BuildState.RUNNING:
                await self._news.wait()

    def _later(self, after: int) -> list[BuildLog]:
        """What is kept of it; if something before that is not, it begins with a line that says so."""
        found = [line for line in self._lines if line.seq > after]
        first = found[0].seq if found else self._seq + 1
        if (lost := first - after - 1) > 0:
            text = f"({lost} pieces of what it said are not kept)"
            found.insert(0, BuildLog(seq=first - 1, at=moment(self._clock()), step=0, stream="note", text=text))
        return found


def _weight(text: str) -> int:
    return sys.getsizeof(text) + _PIECE


class Tail:
    """The end of what a step prints, and its text as it comes."""

    def __init__(self, progress: Progress, step: int) -> None:
        self._progress = progress
        self._step = step
        self._decoders = {name: codecs.getincrementaldecoder("utf-8")("replace") for name in ("stdout", "stderr")}
        self.text = ""

    def take(self, stream: Literal["stdout", "stderr"], data: bytes) -> None:
        if text := self._decoders[stream].decode(data):
            self.text = (self.text + text)[-TAIL:]
            self._progress.say(stream, text, step=self._step)
