"""One run: a server of its own, clients and a gremlin at it in rounds, an inspection after each; then all of it is taken down."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from corral import images
from corral.aio import Client
from corral.chaos import leaks, victim
from corral.chaos.client import Worker
from corral.chaos.gate import Gate
from corral.chaos.gremlin import Gremlin
from corral.chaos.inspection import Inspection
from corral.chaos.judge import Judge
from corral.chaos.known import Known
from corral.chaos.patience import Hang, Patience
from corral.chaos.stores import Stores
from corral.chaos.tally import Tally
from corral.chaos.victim import Victim
from corral.errors import SetupError
from corral.node import programs
from corral.places import Places

HOMES = "corral-chaos-"
"""What the names of homes begin with; the number of the run's process follows."""
IMAGES = ("tiny", "base")


@dataclass(frozen=True)
class Wanted:
    """`seconds` of fire in all, in rounds of `round` seconds. `shared`: the home whose images and runsc are used. `interval`: seconds between two acts of the gremlin."""

    seconds: float
    seed: int
    shared: Places
    clients: int = 4
    round: float = 30.0
    interval: float = 3.0
    patience: float = 60.0
    log: Path | None = None
    """Where the server's log is kept."""


def main(wanted: Wanted, *, quiet: bool = False) -> dict[str, Any]:
    """Do it, and give the counts and violations. Raises `SetupError` when it can't be done here."""
    if os.geteuid() != 0:
        raise SetupError("chaos needs root, to run sandboxes and to kill them", hint="run it with sudo")
    _sweep_killed_runs()
    tally = Tally(quiet=quiet)
    places = _home(wanted.shared)
    server = Victim(places)
    try:
        errors = asyncio.run(_run(wanted, server, tally))
    finally:
        server.down()
        for line in leaks.of_ended_home(places):
            tally.violation("left behind", "after `corral down`", line)
        if wanted.log is not None:
            shutil.copyfile(server.log, wanted.log)
        shutil.rmtree(places.home)
    return {"seed": wanted.seed, "seconds": round(tally.elapsed, 1), **tally.document(), "errors_logged": errors}


async def _run(wanted: Wanted, server: Victim, tally: Tally) -> list[str]:
    await server.start()
    tally.say(f"server at {server.url}, home {server.places.home}, seed {wanted.seed}")
    known: dict[str, Known] = {}
    patience = Patience(wanted.patience, server.ready)
    async with AsyncExitStack() as stack:
        gate = await stack.enter_async_context(Gate(server.port))
        direct = await stack.enter_async_context(Client(server.url, server.key))
        dice = Random(f"{wanted.seed}/gremlin")  # noqa: S311 - a plan
        gremlin = Gremlin(dice, victim=server, gate=gate, client=direct, known=known, tally=tally, interval=wanted.interval)
        judge = Judge(direct, gremlin, known, tally)
        workers = [
            Worker(
                f"c{number}",
                wanted.seed,
                await stack.enter_async_context(Client(gate.url, server.key)),
                known=known,
                judge=judge,
                patience=patience,
                tally=tally,
            )
            for number in range(wanted.clients)
        ]
        inspection = Inspection(
            server.places,
            direct,
            known=known,
            unanswered=lambda: [step for worker in workers for step in worker.unanswered],
            judge=judge,
            patience=patience,
            tally=tally,
        )
        stores = Stores(server.places, direct, [worker.store for worker in workers], patience=patience, tally=tally)
        rounds = max(1, round(wanted.seconds / wanted.round))
        for number in range(1, rounds + 1):
            await _fire(workers, gremlin, wanted.seconds / rounds)
            await inspection.look(f"inspection {number}", wake=number == rounds)
            await stores.look(f"inspection {number}", contents=number == rounds)
        for worker in workers:
            try:
                await patience.wait(worker.rest(), f"readers of {worker.name}")
            except Hang as error:
                tally.violation("hang", worker.name, str(error))
        await inspection.end()
        await stores.end()
        return server.errors()


async def _fire(workers: list[Worker], gremlin: Gremlin, seconds: float) -> None:
    """A round: everybody works while the gremlin rages; at its end the server is up and nothing is under way but readers."""
    over = asyncio.Event()
    working = [asyncio.create_task(worker.work(over)) for worker in workers]
    async with _raging(gremlin):
        await asyncio.sleep(seconds)
    over.set()
    await asyncio.gather(*working)


@asynccontextmanager
async def _raging(gremlin: Gremlin) -> AsyncGenerator[None]:
    task = asyncio.create_task(gremlin.rage())
    try:
        yield
    finally:
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            pass


def _home(shared: Places) -> Places:
    directory = Path(os.environ.get("TMPDIR", "/var/tmp"))  # noqa: S108 - not /tmp, which may be in memory; the name below is made by mkdtemp
    places = Places(Path(tempfile.mkdtemp(prefix=f"{HOMES}{os.getpid()}-", dir=directory)))
    images.share(places, shared, IMAGES)
    programs.share(places, shared)
    return places


def _sweep_killed_runs() -> None:
    """End what runs that were killed have left on this machine."""
    for path in Path(os.environ.get("TMPDIR", "/var/tmp")).glob(f"{HOMES}*-*"):  # noqa: S108
        run = path.name.removeprefix(HOMES).partition("-")[0]
        if run.isdigit() and not Path("/proc", run).exists():
            victim.down(path, {**os.environ, "CORRAL_HOME": str(path)})
            shutil.rmtree(path)
