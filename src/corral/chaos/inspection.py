"""The invariants, looked at while nobody is killing: states are true, what runs answers, files are whole, and everything on the machine belongs to somebody."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, MutableMapping

from corral.aio import Client, Sandbox
from corral.chaos import deeds, leaks, reading
from corral.chaos.deeds import TAG
from corral.chaos.judge import Judge
from corral.chaos.known import Known
from corral.chaos.patience import Hang, Patience
from corral.chaos.tally import Tally
from corral.errors import CorralError
from corral.places import Places
from corral.schema.sandbox import State

SETTLE = 60.0
"""Seconds that the last traces of a sandbox may take to vanish, and a pool to be whole again, on a busy machine."""


class Inspection:
    """`client` reaches the server with no gate between. `unanswered`: steps whose sandbox may be there or not."""

    def __init__(
        self,
        places: Places,
        client: Client,
        *,
        known: MutableMapping[str, Known],
        unanswered: Callable[[], Iterable[str]],
        judge: Judge,
        patience: Patience,
        tally: Tally,
    ) -> None:
        self._places = places
        self._client = client
        self._known = known
        self._unanswered = unanswered
        self._judge = judge
        self._patience = patience
        self._tally = tally
        self._told: set[str] = set()
        """What was left behind and said before."""

    async def look(self, name: str, *, wake: bool = False) -> None:
        """Everything. With `wake` those that are stopped are started, to look at their files too."""
        self._tally.say(f"{name}: {len(self._known)} sandboxes")
        await self._strangers(name)
        await asyncio.gather(*(self._one(known, name, wake=wake) for known in list(self._known.values())))
        await self._traces(name)

    async def end(self) -> None:
        """Delete all sandboxes; nothing of them may be left."""
        listed = [sandbox.id async for sandbox in self._client.sandboxes.list()]
        if listed:
            try:
                await self._patience.wait(self._client.sandboxes.delete(listed), "deleting all")
            except (CorralError, Hang) as error:
                self._tally.violation("delete failed", "end", str(error))
        self._known.clear()
        await self._traces("end")

    async def _strangers(self, name: str) -> None:
        """Sandboxes that no client was told of: fair when a create was left without an answer, one for each."""
        listed = [sandbox async for sandbox in self._client.sandboxes.list()]
        for step, times in Counter(sandbox.tags.get(TAG) for sandbox in listed).items():
            if times > 1:
                self._tally.violation(
                    "created twice", name, f"step {step} has {times} living sandboxes: {[one.id for one in listed if one.tags.get(TAG) == step]}"
                )
        unanswered = set(self._unanswered())
        for sandbox in listed:
            if sandbox.id in self._known:
                continue
            if sandbox.tags.get(TAG) not in unanswered:
                self._tally.violation("came back", name, f"{sandbox!r} of step {sandbox.tags.get(TAG)} ({sandbox.reason}) was deleted, or nobody asked for it")
            try:
                await self._patience.wait(sandbox.delete(), f"{name}: deleting {sandbox.id}")
            except (CorralError, Hang) as error:
                self._tally.violation("delete failed", name, f"{sandbox!r}: {error}")

    async def _one(self, known: Known, name: str, *, wake: bool) -> None:
        try:
            await self._patience.wait(self._judge.settle(known, name), f"{name}: {known.id}")
            if known.id in self._known and (wake or not known.stopped) and not known.doomed:
                await self._patience.wait(self._contents(known, name), f"{name}: contents of {known.id}")
        except Hang as error:
            self._tally.violation("hang", name, f"{error}; {known.why_gone()}")
        except CorralError as error:
            self._tally.violation("wrong error", name, f"{type(error).__name__} [{error.code}] {error} with nobody killing anything; {known.why_gone()}")

    async def _contents(self, known: Known, name: str) -> None:
        sandbox = Sandbox(self._client, known.sandbox.info)
        if known.stopped:
            since = asyncio.get_running_loop().time()
            await sandbox.start()
            known.alive(since)
        for path in sorted(known.files):
            await deeds.check_file(self._tally, name, known, sandbox, path)
        await deeds.check_once(self._tally, name, known, sandbox)
        for printed in known.printed:
            if printed.ended:
                await reading.read(self._client, known, printed, self._tally, name)

    async def _traces(self, name: str) -> None:
        """What is on the machine must belong to a living sandbox, and every member must be whole."""
        left: list[str] = []
        loop = asyncio.get_running_loop()
        deadline = loop.time() + SETTLE
        while loop.time() < deadline:
            left = await self._ownerless()
            if not left:
                self._tally.checked["looks at the machine"] += 1
                return
            await asyncio.sleep(0.5)
        for line in set(left) - self._told:
            self._tally.violation("left behind", name, line)
        self._told.update(left)

    async def _ownerless(self) -> list[str]:
        states = {sandbox.id: sandbox.state async for sandbox in self._client.sandboxes.list()}
        traces = await asyncio.to_thread(leaks.of_sandboxes, self._places)
        left = [f"{id}: {line}" for id, lines in traces.items() if id not in states for line in lines]
        running = {id for id, state in states.items() if state in (State.RUNNING, State.FROZEN)}
        recorded = {path.stem for path in self._places.boxes.glob("sb-*.json")}
        left += [f"{id} is recorded as running and is not" for id in sorted(recorded - running)]
        left += [f"{id} runs without a record" for id in sorted(running - recorded)]
        paused = {id for id, state in states.items() if state is State.PAUSED}
        memories = {path.name for path in self._places.memory.iterdir() if path.name.startswith(("sb-", ".new-sb-"))}
        left += [f"the memory {name} is of no paused sandbox" for name in sorted(memories - paused)]
        left += [f"{id} is paused and has no memory" for id in sorted(paused - memories)]
        return left + await asyncio.to_thread(leaks.of_members, self._places)
