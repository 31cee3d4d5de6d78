"""Pausing and resuming sandboxes: when it may be, and what it means for deadlines and quotas."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from corral.control import lifecycle
from corral.control.admission import Gate
from corral.control.ledger import Ledger
from corral.control.lifecycle import Action
from corral.control.policies import Policies
from corral.control.ports import Node
from corral.control.quota import Quotas, Use
from corral.control.record import Record
from corral.control.registry import Living
from corral.control.roles import Actor
from corral.schema.sandbox import Reason, State


class Pauses:
    """Of the ledger's sandboxes. `freed` is told of one that has left the machine, `watch` of one that runs again; `later` waits for work when the server leaves."""

    def __init__(
        self,
        *,
        node: Node,
        ledger: Ledger,
        policies: Policies,
        gate: Gate,
        quotas: Quotas,
        freed: Callable[[Record], None],
        watch: Callable[[Living], None],
        later: Callable[[Awaitable[object]], None],
    ) -> None:
        self._node = node
        self._ledger = ledger
        self._policies = policies
        self._gate = gate
        self._quotas = quotas
        self._freed = freed
        self._watch = watch
        self._later = later

    async def pause(self, actor: Actor, id_or_name: str) -> Record:
        """Keep its processes, memory and disk on the disk, and free the machine of it, until it is resumed or used. Nothing happens when it is paused already.

        Raises `Unsupported` when something in it can't be saved: its details name it, and it goes on.
        """
        living = await self._ledger.use(actor.project, id_or_name)

        async def pause() -> Record:
            async with living.changing:
                return await self.save(living, Reason.REQUESTED, actor.key)

        return await self._whole(pause())

    async def resume(self, actor: Actor, id_or_name: str) -> Record:
        """Have a paused one go on where it was, with the whole of its timeout before it. Nothing happens when it runs. When it fails it is paused as before."""
        living = await self._ledger.use(actor.project, id_or_name)

        async def resume() -> Record:
            async with living.changing:
                return await self._restore(living, actor.key)

        return await self._whole(resume())

    async def wake(self, living: Living) -> None:
        """Somebody wants to use it: when it is paused, or about to be, it is resumed."""

        async def wake() -> Record:
            async with living.changing:
                return await self._restore(living, None) if living.record.state is State.PAUSED else living.record

        await self._whole(wake())

    async def _whole(self, doing: Coroutine[Any, Any, Record]) -> Record:
        """Do something to its end and write it down, though whoever asked goes away meanwhile."""
        task = asyncio.get_running_loop().create_task(doing)

        async def ended() -> None:
            await asyncio.wait([task])

        self._later(ended())
        return await asyncio.shield(task)

    # Whoever calls holds the sandbox's lock

    async def save(self, living: Living, reason: Reason, actor: str | None) -> Record:
        """Pause it. Nothing happens when it is paused already. Raises `Unsupported` when something in it can't be saved; then it goes on."""
        record = living.record
        if record.state is State.PAUSED:
            return record
        lifecycle.after(record.state, Action.PAUSE)
        living.pausing = True
        try:
            timing = await self._node.pause(record.id)
        finally:
            living.pausing = False
        # It may have ended by itself in the meantime, which was written down then.
        if Action.PAUSE in lifecycle.TABLE[living.record.state]:
            engine = self._node.engine_of(record.id)
            detail = None if engine is None else f"its memory needs runsc {engine}"
            self._ledger.move(living, Action.PAUSE, reason=reason, detail=detail, actor=actor, timing=timing)
            # Its memory and disk are safe, and would be taken for nobody's without its row.
            await self._ledger.settle()
        self._freed(living.record)
        return living.record

    async def _restore(self, living: Living, actor: str | None) -> Record:
        record, began = living.record, time.perf_counter()
        if record.state in (State.RUNNING, State.FROZEN):
            return record
        lifecycle.after(record.state, Action.RESUME)
        with self._quotas.room(record.project, Use(cpu=record.cpu, memory=record.memory)):
            launch = await self._policies.launch(record, self._node.image(record.image_id))
            async with self._gate.turn(record.project, wait=0, memory=record.reserves):
                queued = time.perf_counter() - began
                living.overtaken = None
                timing = {"queue": queued, **await launch.resume(), "total": time.perf_counter() - began}
                self._ledger.move(living, Action.RESUME, actor=actor, timing=timing)
                self._watch(living)
        return living.record
