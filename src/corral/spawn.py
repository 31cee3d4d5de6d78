"""The one place that starts helper programs on the host: always waited for, always with a time-out, failures told in one form.

Sentries are not started here but by the holder (`node/holder.py`), whose children they must be.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import subprocess
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass

from corral.errors import PlatformError

_LONGEST_LINE = 64 << 20
"""Bytes of one line in a conversation."""


class ProgramFailed(PlatformError):
    """A helper program ended with a code other than 0, or ran out of time."""

    code = "program_failed"


@dataclass(frozen=True)
class Completed:
    argv: tuple[str, ...]
    code: int
    stdout: bytes
    stderr: bytes

    def check(self) -> Completed:
        if self.code:
            tail = (self.stderr or self.stdout).decode(errors="replace").strip()[-2000:]
            raise ProgramFailed(f"`{shlex.join(self.argv)}` ended with {self.code}: {tail}")
        return self


def _kill(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def run(
    argv: Sequence[str],
    *,
    timeout: float,
    input: bytes | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    on_line: Callable[[str], None] | None = None,
) -> Completed:
    """Run a program to its end. With `on_line`, its merged output is given line by line as it comes and kept in `stdout`."""
    merged = on_line is not None
    with subprocess.Popen(
        list(argv),
        stdin=subprocess.PIPE if input is not None else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if merged else subprocess.PIPE,
        env=env,
        cwd=cwd,
        start_new_session=True,
    ) as process:
        try:
            if on_line is None:
                out, err = process.communicate(input, timeout=timeout)
            else:
                out, err = _follow(process, timeout, on_line), b""
        except subprocess.TimeoutExpired:
            raise ProgramFailed(f"`{shlex.join(argv)}` did not end within {timeout:g} s and was killed") from None
        finally:
            if process.poll() is None:
                _kill(process)
    return Completed(tuple(argv), process.returncode, out, err)


def _follow(process: subprocess.Popen[bytes], timeout: float, on_line: Callable[[str], None]) -> bytes:
    import threading

    assert process.stdout is not None
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        _kill(process)

    timer = threading.Timer(timeout, expire)
    timer.start()
    kept: list[bytes] = []
    try:
        for line in process.stdout:
            kept.append(line)
            on_line(line.decode(errors="replace").rstrip("\n"))
        process.wait()
    finally:
        timer.cancel()
    if expired.is_set():
        raise subprocess.TimeoutExpired(process.args, timeout)
    return b"".join(kept)


@contextmanager
def heir(argv: Sequence[str], *, timeout: float) -> Generator[None]:
    """Have a program run if this process dies within the block, however it dies; otherwise it isn't run. Costs the start of a shell, some milliseconds."""
    script = 'read -r word; [ "$word" = over ] || exec "$@"'
    with subprocess.Popen(
        ["/bin/sh", "-c", script, "heir", *argv], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            yield
        finally:
            assert process.stdin is not None
            with suppress(BrokenPipeError):
                process.stdin.write(b"over\n")
                process.stdin.close()
            try:
                process.wait(timeout)
            except subprocess.TimeoutExpired:
                _kill(process)


@asynccontextmanager
async def conversation(argv: Sequence[str], *, input: bytes, env: Mapping[str, str] | None = None) -> AsyncGenerator[asyncio.StreamReader]:
    """Run a program for as long as the block lasts, with this on its standard input; gives its standard output and error together.

    It is killed with all it started when the block ends, however that ends. Who reads to the end of the output finds it ended by itself.
    """
    pipe, merged = asyncio.subprocess.PIPE, asyncio.subprocess.STDOUT
    process = await asyncio.create_subprocess_exec(*argv, stdin=pipe, stdout=pipe, stderr=merged, env=env, start_new_session=True, limit=_LONGEST_LINE)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(input)
        process.stdin.close()
        yield process.stdout
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await asyncio.shield(process.wait())


async def run_async(argv: Sequence[str], *, timeout: float, input: bytes | None = None, env: Mapping[str, str] | None = None) -> Completed:
    """`run` in a worker thread, for callers on the event loop."""
    return await asyncio.to_thread(run, argv, timeout=timeout, input=input, env=env)
