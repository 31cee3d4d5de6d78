"""Sandboxes that nobody will ever know of, because the client hung up before it was answered: they are given up.

A request with an Idempotency-Key may be repeated over another connection, so what it made waits a while for that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

import structlog
from pydantic import TypeAdapter
from starlette.requests import ClientDisconnect, Request

from corral.api.stream import Streams, hung_up
from corral.control.idempotency import Answer
from corral.control.roles import Actor
from corral.control.sandboxes import Sandboxes
from corral.errors import CorralError
from corral.schema.fork import Forks
from corral.schema.sandbox import Sandbox

PATIENCE = 60.0
"""Seconds within which a client whose connection broke may come back."""

_MADE: TypeAdapter[Sandbox | Forks] = TypeAdapter(Sandbox | Forks)

log = structlog.get_logger(__name__)


@dataclass
class _Askers:
    """The requests under way with one Idempotency-Key."""

    active: int = 0
    answered: bool = False


class Abandoned:
    """Watches the clients of creates."""

    def __init__(self, sandboxes: Sandboxes, streams: Streams) -> None:
        self._sandboxes = sandboxes
        self._streams = streams
        self._askers: dict[tuple[str, str], _Askers] = {}
        self._waiting: dict[tuple[str, str], asyncio.TimerHandle] = {}
        self._ending: set[asyncio.Task[None]] = set()

    async def watch(self, request: Request, actor: Actor, creating: Coroutine[Any, Any, Answer]) -> Answer:
        """The answer of `creating`, which is given up when the client hangs up before. Raises `ClientDisconnect` then."""
        key = request.headers.get("idempotency-key")
        making = asyncio.get_running_loop().create_task(creating)
        watch = asyncio.get_running_loop().create_task(hung_up(request.receive))
        try:
            if key is None:
                return await self._once(actor, making, watch)
            return await self._repeatable(actor, key, making, watch)
        finally:
            making.cancel()
            watch.cancel()

    async def _once(self, actor: Actor, making: asyncio.Task[Answer], watch: asyncio.Task[None]) -> Answer:
        await asyncio.wait((making, watch), return_when=asyncio.FIRST_COMPLETED)
        if not making.done() and not self._streams.leaving:
            making.cancel()
            await asyncio.wait((making,))
            if not making.cancelled() and making.exception() is None:
                await self._end(actor, making.result())
            raise ClientDisconnect
        return await making

    async def _repeatable(self, actor: Actor, key: str, making: asyncio.Task[Answer], watch: asyncio.Task[None]) -> Answer:
        at = actor.project, key
        if (timer := self._waiting.pop(at, None)) is not None:
            timer.cancel()
        askers = self._askers.setdefault(at, _Askers())
        askers.active += 1
        try:
            await asyncio.wait((making, watch), return_when=asyncio.FIRST_COMPLETED)
            askers.answered = askers.answered or making.done() or self._streams.leaving
            return await making
        finally:
            askers.active -= 1
            if not askers.active:
                del self._askers[at]
                if not askers.answered and making.done() and not making.cancelled() and making.exception() is None:
                    self._waiting[at] = asyncio.get_running_loop().call_later(PATIENCE, self._give_up, at, actor, making.result())

    def _give_up(self, at: tuple[str, str], actor: Actor, answer: Answer) -> None:
        del self._waiting[at]
        task = asyncio.get_running_loop().create_task(self._end(actor, answer))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _end(self, actor: Actor, answer: Answer) -> None:
        for id in _ids(answer):
            log.info("sandbox_abandoned", sandbox=id)
            try:
                await self._sandboxes.delete(actor, id)
            except CorralError as error:
                log.error("sandbox_abandoned_stays", sandbox=id, error=str(error))


def _ids(answer: Answer) -> list[str]:
    """Of what was made: a sandbox, or forks."""
    made = _MADE.validate_json(answer.body)
    return [made.id] if isinstance(made, Sandbox) else [fork.sandbox.id for fork in made.forks if fork.sandbox is not None]
