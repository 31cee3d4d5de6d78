"""Programs whose every byte of output is known before they run. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from random import Random

from corral.schema.process import Stream


@dataclass(frozen=True)
class Script:
    """A counter in shell: numbered lines on standard output, every seventh also on standard error; `pause` seconds of sleep after each hundred."""

    word: str
    lines: int
    exit_code: int = 0
    filler: int = 0
    """Further characters in each line."""
    pause: float = 0.0

    @property
    def command(self) -> str:
        tail = "x" * self.filler
        rest = f"[ $((i % 100)) -ne 0 ] || sleep {self.pause:g}; " if self.pause else ""
        return (
            f'i=0; while [ $i -lt {self.lines} ]; do echo "{self.word} $i {tail}"; [ $((i % 7)) -ne 0 ] || echo "{self.word} $i err" >&2; '
            f"{rest}i=$((i + 1)); done; exit {self.exit_code}"
        )

    @cached_property
    def stdout(self) -> bytes:
        tail = "x" * self.filler
        return "".join(f"{self.word} {i} {tail}\n" for i in range(self.lines)).encode()

    @cached_property
    def stderr(self) -> bytes:
        return "".join(f"{self.word} {i} err\n" for i in range(0, self.lines, 7)).encode()

    def of(self, stream: Stream) -> bytes:
        return self.stdout if stream is Stream.STDOUT else self.stderr

    def differs(self, stream: Stream, offset: int, data: bytes) -> str | None:
        """None when `data` at `offset` is what the script prints there; else where and how it is not."""
        wanted = self.of(stream)[offset : offset + len(data)]
        if wanted == data:
            return None
        at = next((i for i, (ours, theirs) in enumerate(zip(wanted, data, strict=False)) if ours != theirs), min(len(wanted), len(data)))
        around = slice(max(0, at - 20), at + 40)
        return f"{stream} of {self.word} differs at {offset + at}: {data[around]!r} instead of {wanted[around]!r} ({len(data)} bytes at {offset})"


def short(rng: Random, word: str) -> Script:
    """For a command that somebody waits for."""
    return Script(word, lines=rng.choice((1, 10, 100, 1000, 3000)), exit_code=rng.choice((0, 0, 0, 7)), filler=rng.choice((0, 0, 50, 400)))


def long(rng: Random, word: str) -> Script:
    """For a printer that goes on while things happen: seconds to a minute."""
    return Script(word, lines=rng.choice((1000, 4000, 10_000)), exit_code=rng.choice((0, 3)), filler=rng.choice((0, 100)), pause=rng.choice((0.05, 0.2, 0.5)))
