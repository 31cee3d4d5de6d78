"""Asks how a sandbox is, and judges whether the answer is true."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping

from corral.aio import Client, Sandbox
from corral.chaos.gremlin import Gremlin
from corral.chaos.known import Known
from corral.chaos.tally import Tally
from corral.errors import InvalidState, NotFound, SandboxEnded, Unavailable
from corral.schema.sandbox import Reason, State

AGAIN = 0.2
"""Seconds between two looks at a sandbox of which the server is about to learn that it has ended."""


class Judge:
    """`client` reaches the server directly, with no gate between."""

    def __init__(self, client: Client, gremlin: Gremlin, known: MutableMapping[str, Known], tally: Tally) -> None:
        self._client = client
        self.gremlin = gremlin
        self._known = known
        self._tally = tally

    async def settle(self, known: Known, step: str) -> None:
        """Look until it is running and answers, or has ended for a reason that is true. Forgets it when it is gone."""
        while not await self._look(known, step):  # noqa: ASYNC110 - the server is another process
            await asyncio.sleep(AGAIN)

    async def _look(self, known: Known, step: str) -> bool:
        """Whether what it says is the last word."""
        since = asyncio.get_running_loop().time()
        try:
            sandbox = await Sandbox.get(known.id, client=self._client)
        except Unavailable:
            return False
        except NotFound as error:
            self._tally.violation("sandbox vanished", step, f"{error}; {known.why_gone()}")
            self._forget(known)
            return True
        self._tally.checked["states"] += 1
        match sandbox.state:
            case State.RUNNING | State.FROZEN:
                return await self._answers(known, sandbox, step, since)
            case State.STOPPED:
                self._stopped(known, sandbox, step)
                return True
            case State.TERMINATED:
                if not known.doomed or sandbox.reason is not Reason.REQUESTED:
                    self._tally.violation("untrue end", step, f"terminated ({sandbox.reason}, {sandbox.info.detail}); {known.why_gone()}")
                self._forget(known)
                return True
            case State.CREATING:
                return False
            case State.PAUSED if known.pause_asked:
                # What is asked of it resumes it.
                return await self._answers(known, sandbox, step, since)
            case State.FAILED | State.PAUSED:
                self._tally.violation("untrue state", step, f"{sandbox.state} ({sandbox.reason}, {sandbox.info.detail}); {known.why_gone()}")
                self._forget(known)
                return True

    async def _answers(self, known: Known, sandbox: Sandbox, step: str, since: float) -> bool:
        try:
            result = await sandbox.run("echo alive")
        except (Unavailable, SandboxEnded, InvalidState):
            return False
        if (result.stdout, result.exit_code) != ("alive\n", 0):
            self._tally.violation("wrong output", step, f"echo alive: {result}; {known.why_gone()}")
        self._tally.checked["running ones that answer"] += 1
        known.alive(since)
        return True

    def _stopped(self, known: Known, sandbox: Sandbox, step: str) -> None:
        true = known.may_say(holder_lost=bool(self.gremlin.holder_kills))
        if sandbox.reason not in true:
            expected = ", ".join(sorted(true)) or "no reason at all: it ought to run"
            self._tally.violation("untrue reason", step, f"stopped ({sandbox.reason}, {sandbox.info.detail}), true would be: {expected}; {known.why_gone()}")
        self._tally.checked[f"stopped, {sandbox.reason}"] += 1
        known.ended(sandbox.reason)

    def _forget(self, known: Known) -> None:
        self._known.pop(known.id, None)
