"""snapshot: keeping the disk of a sandbox that goes on, with so much changed since the last time."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from corral import Client, CorralError, Process, Snapshot
from corral.bench.figure import Figure, Floor, timed
from corral.errors import SetupError
from corral.node import syscalls
from corral.places import Places, default_home

CHANGED = 50
"""MiB written before each snapshot, and not synced."""
_WRITE = "dd if=/dev/urandom of=/changed bs=1M count={mib} conv=notrunc 2>/dev/null"
_TICKS = "while :; do echo x >> /ticks; done"


def snapshot(client: Client, n: int, image: str) -> Figure:
    """From the call to the answer, while a process writes. `stopped`: for how long writers had to wait. The floor: writing as much out and one reflink, by hand."""
    samples: list[float] = []
    stopped: list[float] = []
    made: list[Snapshot] = []
    failures = 0
    with client.sandboxes.create(image, memory=1024) as sandbox:
        ticker: Process[str] = sandbox.exec("sh", "-c", _TICKS)
        try:
            for _ in range(n):
                sandbox.run(_WRITE.format(mib=CHANGED)).check()
                try:
                    samples.append(timed(lambda: made.append(sandbox.snapshot())))
                    stopped.append(made[-1].timing["stopped"] * 1000)
                except CorralError:
                    failures += 1
        finally:
            ticker.kill()
            for one in made:
                one.delete()
    more = {"image": image, "changed_mib": CHANGED, "stopped_max": max(stopped, default=None), "stopped_mean": sum(stopped) / max(1, len(stopped))}
    return Figure("snapshot", "ms", samples, failures, Floor("fdatasync and reflink", _by_hand(n)), more)


def _by_hand(n: int) -> list[float]:
    pool = Places(default_home()).pool
    if not pool.is_dir() or not os.access(pool, os.W_OK):
        raise SetupError("the floor of this figure needs the disk pool", hint="run it on the server's machine, as root")
    samples: list[float] = []
    content = os.urandom(1 << 20)
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=pool) as directory, Path(directory, "disk").open("w+b", buffering=0) as disk:
        for number in range(n):
            disk.seek(0)
            for _ in range(CHANGED):
                disk.write(content)
            copy = Path(directory, str(number))
            samples.append(timed(lambda copy=copy: _keep(disk.fileno(), copy)))
            copy.unlink()
    return samples


def _keep(disk: int, copy: Path) -> None:
    os.fdatasync(disk)
    with copy.open("wb") as target:
        syscalls.reflink(disk, target.fileno())
