"""/sandboxes/{id}/…: deadlines, pausing and going on."""

from __future__ import annotations

from pydantic import Field
from starlette.responses import Response

from corral.control.record import Record
from corral.control.roles import Permission
from corral.facades.e2b.body import Body
from corral.facades.e2b.network import Egress, policy
from corral.facades.e2b.refusal import Refused
from corral.facades.e2b.rest.call import Call, living, missing, shown_access, told
from corral.facades.e2b.rest.sandboxes import LEAST
from corral.facades.e2b.rest.shown import state
from corral.schema.sandbox import SandboxUpdate, State

_LEAST_RESUMED = 300
_OF_PORTS = frozenset({"allowPublicTraffic", "maskRequestHost"})


class Timeout(Body):
    timeout: int


class Connect(Body):
    """POST …/connect. `memory` false: a paused one begins anew on its disk."""

    timeout: int | None = None
    memory: bool | None = None


class Resume(Body):
    timeout: int = 15
    auto_pause: bool | None = None
    memory: bool | None = None


class Refresh(Body):
    duration: int = 15


class Pause(Body):
    memory: bool | None = None


class NetworkUpdate(Egress):
    """PUT …/network: takes the place of all that was said before."""

    allow_internet_access: bool | None = Field(default=None, alias="allow_internet_access")


async def timeout(call: Call) -> Response:
    """The deadline, counted from now."""
    call.actor.require(Permission.USE)
    wanted = await call.body(Timeout)
    record = await _running(call)
    await living(record.id, call.services.sandboxes.update(call.actor, record.id, until(wanted.timeout)))
    return Response(status_code=204)


async def refresh(call: Call) -> Response:
    """The deadline, never nearer than it was."""
    call.actor.require(Permission.USE)
    wanted = await call.body(Refresh)
    record = await _running(call)
    await living(record.id, call.services.sandboxes.extend(call.actor, record.id, max(LEAST, wanted.duration)))
    return Response(status_code=204)


async def connect(call: Call) -> Response:
    """A sandbox that runs lives at least that much longer; one that is paused goes on."""
    call.actor.require(Permission.USE)
    wanted = await call.body(Connect)
    seconds = max(LEAST, wanted.timeout if wanted.timeout is not None else _LEAST_RESUMED)
    record = await _settled(call)
    if state(record) == "running":
        if wanted.timeout is not None:
            await living(record.id, call.services.sandboxes.extend(call.actor, record.id, seconds))
        return told(await shown_access(call, record))
    return await _resumed(call, record, seconds, memory=wanted.memory)


async def resume(call: Call) -> Response:
    call.actor.require(Permission.USE)
    wanted = await call.body(Resume)
    record = await _settled(call)
    if state(record) == "running":
        raise Refused(409, f"Sandbox {record.id} is already running")
    if wanted.timeout <= 0:
        raise Refused(400, "Timeout must be greater than 0")
    return await _resumed(call, record, wanted.timeout, memory=wanted.memory)


async def _resumed(call: Call, record: Record, seconds: float, *, memory: bool | None) -> Response:
    sandboxes = call.services.sandboxes
    if memory is False and record.state is State.PAUSED:
        record = await living(record.id, sandboxes.stop(call.actor, record.id))
    # First, since it goes on with the whole of its timeout: one of no time at all would be paused again at once.
    await living(record.id, sandboxes.update(call.actor, record.id, until(seconds)))
    going_on = sandboxes.pauses.resume if record.state is State.PAUSED else sandboxes.start
    record = await living(record.id, going_on(call.actor, record.id))
    return told(await shown_access(call, record), 201)


async def pause(call: Call) -> Response:
    call.actor.require(Permission.USE)
    wanted = await call.body(Pause)
    record = await call.sandbox()
    if state(record) == "paused":
        raise Refused(409, f"Error pausing sandbox - sandbox '{record.id}' is already paused")
    sandboxes = call.services.sandboxes
    end = sandboxes.stop if wanted.memory is False else sandboxes.pauses.pause
    await living(record.id, end(call.actor, record.id))
    return Response(status_code=204)


async def _settled(call: Call) -> Record:
    """The sandbox, when a pause that is under way has ended. Raises `Refused`."""
    record = await call.sandbox()
    found = call.services.sandboxes.ledger.find(call.actor.project, record.id)
    if found is None or not found.pausing:
        return record
    async with found.changing:
        return await call.sandbox()


async def _running(call: Call) -> Record:
    """One that is paused has no deadline to set, and is not there for who wants one. Raises `Refused`."""
    record = await call.sandbox()
    if state(record) != "running":
        raise missing(record.id)
    return record


def until(seconds: float) -> SandboxUpdate:
    """Only the fields that are given are changed."""
    return SandboxUpdate.model_validate({"timeout": max(LEAST, seconds)})


def _keep(call: Call, id: str, wanted: NetworkUpdate) -> None:
    """Who asks is told what holds now: what was said of ports at its creation stays, all else is as it was just said."""
    ledger = call.services.sandboxes.ledger
    if (found := ledger.find(call.actor.project, id)) is None:
        return
    said = found.record.facade
    ports = {name: value for name, value in said.get("network", {}).items() if name in _OF_PORTS}
    fresh = {**ports, **wanted.model_dump(exclude_none=True, by_alias=True, exclude={"allow_internet_access"})}
    kept = {name: value for name, value in said.items() if name not in ("network", "internet")}
    told = {"network": fresh, "internet": wanted.allow_internet_access}
    ledger.amend(found, actor=call.actor.key, facade={**kept, **{name: value for name, value in told.items() if value not in (None, {})}})


async def network(call: Call) -> Response:
    call.actor.require(Permission.USE)
    wanted = await call.body(NetworkUpdate)
    record = await _running(call)
    fresh = policy(wanted, internet=wanted.allow_internet_access)
    await living(record.id, call.services.policies.set(call.actor, record.id, fresh))
    _keep(call, record.id, wanted)
    return Response(status_code=204)
