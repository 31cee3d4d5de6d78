"""pause and fork: what a sandbox with a warm Python of 110 MB costs to put away, to bring back, and to have again several times."""

from __future__ import annotations

import time

from corral import Client, CorralError, Process, Sandbox
from corral.bench.figure import Figure, timed

MIB = 100
"""What the program inside holds besides itself, none of it compressible."""
FORKS = 8
_PROGRAM = f"import os, sys\nheld = os.urandom({MIB} << 20)\nfor line in sys.stdin: print(len(held), line, end='', flush=True)"
_SETTLE = 2.0
"""Seconds between two rounds, in which the pool gets its members back."""


def pause(client: Client, n: int, image: str) -> Figure:
    """From the call to the answer, when all is safe on the disk and nothing of it is left on the host. `resume_*`: from the call to the answer of a line by the program inside."""
    samples: list[float] = []
    resumed: list[float] = []
    failures = 0
    with client.sandboxes.create(image, memory=1024) as sandbox:
        program = _started(sandbox)
        for _ in range(n):
            try:
                samples.append(timed(sandbox.pause))
                resumed.append(timed(lambda: (sandbox.resume(), _ask(program))))
            except CorralError:
                failures += 1
            time.sleep(_SETTLE)
    more = {"image": image, "held_mib": MIB, "resume_min": min(resumed, default=None), "resume_mean": _mean(resumed), "resume_max": max(resumed, default=None)}
    return Figure("pause", "ms", samples, failures, None, more)


def fork(client: Client, n: int, image: str) -> Figure:
    """One fork: from the call to the answer of a line by the program in the fork. `stopped_*`: for how long the source stood still. `eight_*`: the call for eight at once."""
    samples: list[float] = []
    stopped: list[float] = []
    eight: list[float] = []
    failures = 0
    with client.sandboxes.create(image, memory=1024) as sandbox:
        program = _started(sandbox)
        for _ in range(n):
            for count, into in ((1, samples), (FORKS, eight)):
                made: list[Sandbox] = []
                try:
                    into.append(timed(lambda count=count, made=made: _fork(sandbox, program, count, made)))
                    stopped.append(made[0].timing["stopped"] * 1000)
                except CorralError:
                    failures += 1
                for kid in made:
                    kid.delete()
                time.sleep(_SETTLE)
    more = {"image": image, "held_mib": MIB, "stopped_mean": _mean(stopped), "stopped_max": max(stopped, default=None)}
    return Figure("fork", "ms", samples, failures, None, {**more, "eight_min": min(eight, default=None), "eight_mean": _mean(eight)})


def _fork(source: Sandbox, program: Process[str], count: int, made: list[Sandbox]) -> None:
    made += source.fork(count)
    if count == 1:
        _ask(made[0].process(program.id))


def _started(sandbox: Sandbox) -> Process[str]:
    program = sandbox.exec("python3", "-c", _PROGRAM)
    _ask(program)
    return program


def _ask(program: Process[str]) -> None:
    """Until the program has answered one more line."""
    mark = f"{time.perf_counter_ns()}\n"
    program.stdin.write(mark)
    for line in program.stdout:
        if line.endswith(mark):
            return


def _mean(samples: list[float]) -> float | None:
    return sum(samples) / len(samples) if samples else None
