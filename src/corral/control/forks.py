"""Forks of running sandboxes: who they are, what they have of their own, and what is written down of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from corral.control import lifecycle
from corral.control.admission import Gate
from corral.control.idempotency import Claim
from corral.control.launch import Launch
from corral.control.ports import Node
from corral.control.quota import Use
from corral.control.record import Record
from corral.control.registry import Living
from corral.control.roles import Actor
from corral.control.volumes import Volumes
from corral.errors import CorralError, InternalError, InvalidArgument, InvalidState, NotFound, SandboxEnded, Unavailable
from corral.ids import family, new_id
from corral.node.interface import Child, Timing, VolumeUse
from corral.node.volumes import name_of
from corral.schema.fork import ForkChild, SandboxFork
from corral.schema.sandbox import State

if TYPE_CHECKING:
    from corral.control.sandboxes import Sandboxes

log = structlog.get_logger(__name__)


class Forks:
    """Makes them. A fork is a sandbox like any other from the moment it is told of."""

    def __init__(self, sandboxes: Sandboxes, *, node: Node, gate: Gate, volumes: Volumes, clock: Callable[[], float]) -> None:
        self._sandboxes = sandboxes
        self._volumes = volumes
        self._ledger = sandboxes.ledger
        self._node = node
        self._gate = gate
        self._clock = clock

    async def fork(self, actor: Actor, id_or_name: str, wanted: SandboxFork, *, claim: Claim | None = None) -> list[Record | CorralError]:
        """New sandboxes with the disk, memory and processes of one that goes on; for each its record, or why there is none. A paused one is resumed first.

        `claim` is written with each; `again` finds by any of them what was made.

        Raises `Unsupported`, and makes none, when something in the source can't be saved; `Conflict` (a name is taken), `QuotaExceeded`, `Unavailable` (no room).
        """
        await self._sandboxes.use(actor.project, id_or_name, wake=True)
        async with self._sandboxes.hold(actor.project, id_or_name) as source:
            record = source.record
            if record.state not in (State.RUNNING, State.FROZEN):
                raise InvalidState(f"a sandbox that is {record.state} can't be forked", hint="start it first", details={"state": record.state})
            for child in wanted.wanted:
                if child.egress is not None:
                    await self._sandboxes.policies.check(child.egress)
            children = self._reserve(actor, record, wanted.wanted)
            async with AsyncExitStack() as stack:
                try:
                    await stack.enter_async_context(self._gate.turn(record.project, wait=0, memory=len(children) * record.reserves))
                    launches = [await self._sandboxes.policies.launch(child.record, self._node.image(record.image_id)) for child in children]
                    results = await self._made(record.id, children, launches)
                except BaseException:
                    for child in children:
                        self._ledger.registry.drop(child.record.id)
                    raise
                return await self._entered(actor, children, results, claim)

    async def again(self, project: str, id: str, wanted: SandboxFork) -> list[Record | CorralError] | None:
        """What an earlier server had made of a request when it ended, by the id of one of its forks; None: nothing of it lives."""
        found: list[Record | CorralError] = []
        for one in family(id, len(wanted.wanted)):
            try:
                record = await self._sandboxes.get(project, one)
            except NotFound:
                found.append(Unavailable("the server ended before this fork was made", hint="fork again, with another Idempotency-Key"))
                continue
            ended = SandboxEnded(f"the fork {record.id} has ended ({record.reason or record.state})", hint="fork again, with another Idempotency-Key")
            found.append(record if record.state in lifecycle.LIVING else ended)
        return found if any(isinstance(one, Record) for one in found) else None

    def _reserve(self, actor: Actor, source: Record, wanted: Sequence[ForkChild]) -> list[Living]:
        """Their names and shares of the quota."""
        count = len(wanted)
        self._gate.capacity().check(cpu=source.cpu, memory=source.memory, disk=source.disk)
        self._sandboxes.quotas.check(source.project, Use(count, count * source.cpu, count * source.memory, count * source.disk))
        with ExitStack() as undo:
            children: list[Living] = []
            for id, child in zip(family(new_id("sb"), count), wanted, strict=True):
                children += [self._ledger.registry.add(self._record(actor, source, child, id), reserved=True)]
                undo.callback(self._ledger.registry.drop, children[-1].record.id)
            undo.pop_all()
        return children

    def _record(self, actor: Actor, source: Record, child: ForkChild, id: str) -> Record:
        return replace(
            source,
            id=id,
            name=child.name,
            hostname=child.name or id,
            state=State.CREATING,
            env={**source.env, **child.env},
            tags=source.tags if child.tags is None else child.tags,
            secrets=source.secrets if child.secrets is None else tuple(child.secrets),
            egress=source.egress if child.egress is None else child.egress,
            volumes=self._uses(source, child),
            previews=replace(source.previews, held_until=None),
            forked_from=source.id,
            created_at=self._clock(),
            created_by=actor.key,
            started_at=None,
            deadline=None,
            timing=None,
            reason=None,
            detail=None,
            ended_by=None,
        )

    def _uses(self, source: Record, child: ForkChild) -> tuple[VolumeUse, ...]:
        """The source's volumes, or others in their places. Raises `InvalidArgument` for a place where there is none, `NotFound`."""
        if strange := sorted(child.volumes.keys() - {use.path for use in source.volumes}):
            raise InvalidArgument(
                f"volumes: {source.id} has no volume at {strange[0]}", hint="attach it to the fork when it is there", details={"field": "volumes"}
            )
        own = {use.path: use for use in self._volumes.uses(source.project, child.volumes)}
        # Its memory knows them by the names that the source's have.
        return tuple(replace(own[use.path], name=name_of(use)) if use.path in own else use for use in source.volumes)

    async def _made(self, source: str, children: Sequence[Living], launches: Sequence[Launch]) -> Sequence[Timing | CorralError]:
        making = asyncio.get_running_loop().create_task(self._node.fork(source, [Child(launch.spec, launch.secrets) for launch in launches]))
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:

            async def undo() -> None:
                """Nobody waits for them any more."""
                await asyncio.wait([making])
                await asyncio.gather(*(self._node.remove(child.record.id) for child in children))

            self._sandboxes.later(undo())
            raise

    async def _entered(
        self, actor: Actor, children: Sequence[Living], results: Sequence[Timing | CorralError], claim: Claim | None
    ) -> list[Record | CorralError]:
        tasks = [asyncio.ensure_future(self._enter(actor, child, result, claim)) for child, result in zip(children, results, strict=True)]
        try:
            return await asyncio.shield(asyncio.gather(*tasks))
        except BaseException:

            async def undo() -> None:
                """Nobody will ever know of them."""
                entered = await asyncio.gather(*tasks, return_exceptions=True)
                await self._sandboxes.delete_many(actor, [one.id for one in entered if isinstance(one, Record)])

            self._sandboxes.later(undo())
            raise

    async def _enter(self, actor: Actor, child: Living, result: Timing | CorralError, claim: Claim | None) -> Record | CorralError:
        """From now on it is there for all to see; or nothing of it is."""
        if isinstance(result, CorralError):
            self._ledger.registry.drop(child.record.id)
            return result
        try:
            await self._ledger.enter(child, claim)
        except Exception as error:
            log.exception("fork_not_written", sandbox=child.record.id)
            await self._node.remove(child.record.id)
            self._ledger.registry.drop(child.record.id)
            return InternalError(f"the fork could not be written down: {error}", hint="look at the server's log")
        return self._sandboxes.runs(child, actor=actor.key, timing=result)
