"""One client: a random plan, one step after the other, in sandboxes of its own. What was answered to it is remembered and held against the server."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from random import Random

from corral.aio import Client
from corral.chaos import deeds, keeping, sharing, sleeping
from corral.chaos.deeds import Context
from corral.chaos.judge import Judge
from corral.chaos.kept import Store
from corral.chaos.known import Known
from corral.chaos.patience import Hang, Patience
from corral.chaos.tally import Tally
from corral.errors import CorralError, InvalidState, SandboxEnded, Unavailable

Deed = Callable[[Context, Known], Awaitable[None]]

BOXES = 3
"""Sandboxes that one client has at the same time."""
FORKED = 0.4
"""Share of further sandboxes that are forks of the one at hand."""
FAIR = (Unavailable, SandboxEnded, InvalidState)
"""What a client may rightly see under fire."""
RUNNING: tuple[tuple[int, Deed], ...] = (
    (20, deeds.count),
    (10, deeds.echo),
    (6, deeds.fork),
    (8, deeds.once),
    (14, deeds.upload),
    (12, deeds.download),
    (12, deeds.start_printer),
    (12, deeds.read_printer),
    (8, keeping.snapshot),
    (4, keeping.drop_snapshot),
    (6, keeping.checkpoint),
    (5, keeping.rewind),
    (8, sharing.put_shared),
    (8, sharing.get_shared),
    (5, deeds.stop),
    (5, deeds.delete),
    (6, sleeping.pause),
)
STOPPED: tuple[tuple[int, Deed], ...] = (
    (10, deeds.start),
    (4, deeds.read_printer),
    (2, keeping.snapshot),
    (2, keeping.checkpoint),
    (2, keeping.rewind),
    (3, deeds.delete),
)


class Worker:
    """`seed` and the worker's and the step's number make the step: the same again in every run, as far as what it finds is the same."""

    def __init__(self, name: str, seed: int, client: Client, *, known: MutableMapping[str, Known], judge: Judge, patience: Patience, tally: Tally) -> None:
        self.name = name
        self._seed = seed
        self._client = client
        self._all = known
        self._mine: list[str] = []
        self.store = Store(volume=f"volume-{name}")
        self._judge = judge
        self._patience = patience
        self._tally = tally
        self._number = 0
        self._readers: set[asyncio.Task[None]] = set()
        self.unanswered: set[str] = set()
        """Steps that asked for a sandbox and got no answer: one may be there or not."""

    async def work(self, until: asyncio.Event) -> None:
        """Step after step; ends with the step that is under way when `until` is set."""
        while not until.is_set():
            self._number += 1
            await self._step(Random(f"{self._seed}/{self.name}/{self._number}"), f"{self.name}-{self._number}")  # noqa: S311 - a plan

    async def rest(self) -> None:
        """Wait for readers in the background."""
        if self._readers:
            await asyncio.wait(self._readers)

    async def _step(self, rng: Random, step: str) -> None:
        self._mine = [id for id in self._mine if id in self._all]
        known = self._all[rng.choice(self._mine)] if self._mine else None
        context = Context(rng, step, self._client, self._tally, self._read_on, self.store)
        if known is None or (len(self._mine) < BOXES and rng.random() < 0.25):
            runs = known is not None and not (known.stopped or known.doomed or known.unsure)
            source = known if runs and rng.random() < FORKED else None
            await self._guarded("create" if source is None else "live_fork", step, self._create(context, source), source)
            return
        if known.doomed:
            deed: Deed = deeds.delete
        elif known.unsure:
            deed = keeping.checkpoint
        else:
            choices = STOPPED if known.stopped else RUNNING
            deed = rng.choices([deed for _, deed in choices], [weight for weight, _ in choices])[0]
        await self._guarded(deed.__name__, step, deed(context, known), known)
        if known.doomed and known.sandbox.state == "terminated":
            await self._patience.wait(self._judge.settle(known, step), f"{step}: looking at a deleted sandbox")

    async def _create(self, context: Context, source: Known | None) -> None:
        self.unanswered.add(context.step)
        known = await (deeds.create(context) if source is None else sleeping.fork(context, source))
        self.unanswered.discard(context.step)
        self._all[known.id] = known
        self._mine.append(known.id)

    async def _guarded(self, name: str, step: str, doing: Awaitable[None], known: Known | None) -> None:
        """Do it; what comes of it is fair, or a violation. Afterwards its sandbox is looked at, if that did not go well."""

        async def do() -> None:
            await doing

        began = asyncio.get_running_loop().time()
        try:
            with self._judge.gremlin.underway.doing(name, known):
                await self._patience.wait(do(), f"{step}: {name}")
        except FAIR as error:
            self._tally.refused[f"{name}: {type(error).__name__}"] += 1
        except Hang as error:
            self._tally.violation("hang", step, str(error) + (f"; {known.why_gone()}" if known else ""))
        except CorralError as error:
            if "[create_failed]" in error.message and any(at >= began for at in self._judge.gremlin.member_kills):
                self._tally.refused[f"{name}: its member was killed"] += 1
            else:
                text = f"{name}: {type(error).__name__} [{error.code}] {error}"
                self._tally.violation("wrong error", step, text + (f"; {known.why_gone()}" if known else ""))
        except Exception:
            self._tally.violation("client broke", step, f"{name}: {traceback.format_exc()}")
        else:
            self._tally.did[name] += 1
            return
        if known is not None:
            try:
                await self._patience.wait(self._judge.settle(known, step), f"{step}: settling after {name}")
            except Hang as error:
                self._tally.violation("hang", step, f"{error}; {known.why_gone()}")

    def _read_on(self, reading: Awaitable[None], known: Known, step: str) -> None:
        """A reader that goes on in the background, across steps."""

        async def read() -> None:
            try:
                await reading
            except FAIR as error:
                self._tally.refused[f"reader: {type(error).__name__}"] += 1
            except CorralError as error:
                if not known.doomed:
                    self._tally.violation("wrong error", step, f"reader: {type(error).__name__} [{error.code}] {error}; {known.why_gone()}")
            else:
                self._tally.did["reader in the background"] += 1

        task = asyncio.create_task(read())
        self._readers.add(task)
        task.add_done_callback(self._readers.discard)
