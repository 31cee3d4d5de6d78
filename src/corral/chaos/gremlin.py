"""Kills and cuts at random. Every kill goes to a process that was found and checked to be ours."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from random import Random

from corral.aio import Client, Sandbox
from corral.chaos import leaks
from corral.chaos.gate import Gate
from corral.chaos.known import Blow, Known
from corral.chaos.tally import Tally
from corral.chaos.underway import Underway
from corral.chaos.victim import Victim
from corral.errors import CorralError, SandboxEnded
from corral.node import record
from corral.node.record import Record
from corral.node.sentry import started_at

HOLDER_APART = 60.0
"""Seconds between two ends of the holder: it is the one thing that is allowed to be slow to come back."""

AMBUSH = 10.0
"""Seconds for which it lies in wait for a deed it can strike in the middle of."""
AGENT_SECONDS = 20.0
"""How long the command that kills an agent may take to get there."""


class Gremlin:
    """`known` are the sandboxes it may hit, by id. `interval`: seconds between two acts, on average."""

    def __init__(self, rng: Random, *, victim: Victim, gate: Gate, client: Client, known: Mapping[str, Known], tally: Tally, interval: float) -> None:
        self._rng = rng
        self._victim = victim
        self._gate = gate
        self._client = client
        self._known = known
        self._tally = tally
        self._interval = interval
        self.holder_kills: list[float] = []
        self.member_kills: list[float] = []
        """When on the event loop's clock: a create or start that was waiting for that member fails."""
        self.underway = Underway()

    async def rage(self) -> None:
        """Until cancelled. What has been begun is then finished: a killed server is up again."""
        acts: list[tuple[int, str, Callable[[], Awaitable[bool]]]] = [
            (5, "server killed", self._kill_server),
            (1, "server ended in order", self._leave_server),
            (3, "server killed with a sandbox", self._kill_both),
            (6, "sentry killed", lambda: self._strike(Blow.SENTRY)),
            (4, "gofer killed", lambda: self._strike(Blow.GOFER)),
            (4, "agent killed", self._kill_agent),
            (3, "pool member killed", self._kill_member),
            (6, "connections cut", self._cut),
            (6, "connections cut in mid-stream", self._cut_midway),
            (1, "holder killed", self._kill_holder),
            (16, "struck from ambush", self._ambush),
        ]
        while True:
            await asyncio.sleep(self._rng.expovariate(1 / self._interval))
            _, name, act = self._rng.choices(acts, [weight for weight, _, _ in acts])[0]
            doing = asyncio.ensure_future(act())
            try:
                done = await asyncio.shield(doing)
            except asyncio.CancelledError:
                await doing
                raise
            if done:
                self._tally.suffered[name] += 1
                self._tally.say(f"gremlin: {name}")

    async def _kill_server(self) -> bool:
        await self._fell_server(signal.SIGKILL)
        await asyncio.sleep(self._rng.choice((0, 0, 0.5, 2)))
        await self._victim.start()
        return True

    async def _leave_server(self) -> bool:
        await self._fell_server(signal.SIGTERM)
        await self._victim.start()
        return True

    async def _kill_both(self) -> bool:
        """A sandbox ends while nobody watches it."""
        await self._fell_server(signal.SIGKILL)
        await self._strike(self._rng.choice((Blow.SENTRY, Blow.GOFER)))
        await self._victim.start()
        return True

    async def _fell_server(self, number: signal.Signals) -> None:
        await self._victim.kill(number)
        self._note_orphans()

    def _note_orphans(self) -> None:
        """If both server and holder have just fallen: nobody may have had the sockets of any sandbox."""
        servers, holders = self._victim.kills[-1:], self.holder_kills[-1:]
        if servers and holders and abs(servers[0] - holders[0]) < HOLDER_APART:
            for known in self._known.values():
                self._note(known, Blow.ORPHANED)

    async def _strike(self, blow: Blow, prey: Known | None = None) -> bool:
        """At any sandbox, or this one."""
        if (found := self._pick(prey)) is None:
            return False
        known, box = found
        identity = box.identity
        pid, started = (identity.pid, identity.pid_started) if blow is Blow.SENTRY else (identity.gofer, identity.gofer_started)
        return bool(pid) and _kill(pid, started, lambda: self._note(known, blow))

    async def _kill_agent(self) -> bool:
        """As root inside, where it is process 1."""
        if (found := self._pick()) is None:
            return False
        known = found[0]
        self._note(known, Blow.AGENT, within=AGENT_SECONDS)
        handle = Sandbox(self._client, known.sandbox.info)
        with suppress(CorralError, TimeoutError):  # the server may be busy, and the sandbox ended already
            async with asyncio.timeout(AGENT_SECONDS):
                try:
                    await handle.run("kill -9 1", user="root")
                except SandboxEnded:  # under the command that ended it
                    return True
        return False

    async def _kill_member(self) -> bool:
        """One that waits in the pool, or is just being made."""
        places = self._victim.places
        claimed = {box.member for box in self._records()}
        waiting = sorted(entry.name for entry in places.members.iterdir() if entry.name not in claimed)
        if not waiting:
            return False
        member = self._rng.choice(waiting)
        hit = False
        for pid in leaks.processes_of_member(places, member):
            if all(box.member != member for box in self._records()):  # it may have been claimed just now
                with suppress(ProcessLookupError):
                    hit |= _kill(pid, started_at(pid), lambda: self.member_kills.append(asyncio.get_running_loop().time()))
        return hit

    async def _ambush(self) -> bool:
        """In the middle of a deed of which only the whole or nothing may be seen: the server, or what runs the sandbox."""
        if (prey := await self.underway.next(AMBUSH)) is None:
            return False
        # Most of them take no longer on a machine that has much to do.
        await asyncio.sleep(self._rng.uniform(0, 0.4))
        name, known = prey
        if not self.underway.lasts(prey):
            return False
        if self._rng.random() < 0.6:
            await self._fell_server(signal.SIGKILL)
            self._tally.suffered[f"server killed in the middle of {name}"] += 1
            await self._victim.start()
            return True
        if hit := await self._strike(self._rng.choice((Blow.SENTRY, Blow.GOFER)), known):
            self._tally.suffered[f"sandbox killed in the middle of {name}"] += 1
        return hit

    async def _kill_holder(self) -> bool:
        now = asyncio.get_running_loop().time()
        if self.holder_kills and now - self.holder_kills[-1] < HOLDER_APART:
            return False
        socket = str(self._victim.places.holder_socket).encode()
        for entry in Path("/proc").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):
                if entry.name.isdigit() and socket in (entry / "cmdline").read_bytes():
                    pid = int(entry.name)
                    hit = _kill(pid, started_at(pid), lambda: self.holder_kills.append(now))
                    self._note_orphans()
                    return hit
        return False

    async def _cut(self) -> bool:
        return self._gate.cut(self._rng, self._rng.choice((0.3, 1))) > 0

    async def _cut_midway(self) -> bool:
        before = self._gate.cuts
        self._gate.every = self._rng.choice((300, 5_000, 40_000))
        await asyncio.sleep(self._rng.uniform(0.5, 2))
        self._gate.every = None
        return self._gate.cuts > before

    def _pick(self, prey: Known | None = None) -> tuple[Known, Record] | None:
        """A running sandbox that a client knows of, or this one if it runs."""
        found = [(self._known[box.spec.id], box) for box in self._records() if box.spec.id in (self._known if prey is None else {prey.id} & self._known.keys())]
        return self._rng.choice(found) if found else None

    def _records(self) -> list[Record]:
        try:
            return list(record.read_all(self._victim.places.boxes))
        except FileNotFoundError:  # one has ended between two looks
            return []

    def _note(self, known: Known, blow: Blow, *, within: float = 0) -> None:
        known.blows.append((asyncio.get_running_loop().time() + within, blow))


def _kill(pid: int, started: int, before: Callable[[], None]) -> bool:
    """SIGKILL to that very process, not to a later one of its number."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if started_at(pid) != started:
            return False
        before()
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        return True
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
