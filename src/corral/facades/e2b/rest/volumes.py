"""/volumes of E2B. For what is in them see volume_content."""

from __future__ import annotations

from pydantic import ValidationError
from starlette.responses import Response

from corral.control.quota import Use
from corral.control.roles import Permission
from corral.control.volumes import VolumeRecord
from corral.errors import Conflict, NotFound
from corral.facades.e2b.body import Body
from corral.facades.e2b.refusal import Refused
from corral.facades.e2b.rest.call import Call, told
from corral.schema.volume import VolumeCreate


class NewVolume(Body):
    """POST /volumes."""

    name: str


async def create(call: Call) -> Response:
    call.actor.require(Permission.USE)
    name = (await call.body(NewVolume)).name
    try:
        wanted = VolumeCreate.model_validate({"name": name})
    except ValidationError:
        raise Refused(400, f"Invalid volume name: {name[:80]!r}; use letters, digits, _ and -, at most 63") from None
    call.services.sandboxes.quotas.check(call.actor.project, Use(disk=call.services.volumes.size(call.actor.project, wanted)))
    try:
        return told(_opened(call, await call.services.volumes.create(call.actor, wanted)), 201)
    except Conflict:
        raise Refused(400, f"Volume with name '{name}' already exists") from None


async def listing(call: Call) -> Response:
    call.actor.require(Permission.LOOK)
    return told([_shown(record) for record in call.services.volumes.of(call.actor.project)])


async def get(call: Call) -> Response:
    # The answer opens the volume's files, for reading and writing.
    call.actor.require(Permission.USE)
    return told(_opened(call, _found(call)))


async def delete(call: Call) -> Response:
    call.actor.require(Permission.USE)
    await call.services.volumes.delete(call.actor, _found(call).id)
    return Response(status_code=204)


def _found(call: Call) -> VolumeRecord:
    try:
        return call.services.volumes.get(call.actor.project, call.part("volume"))
    except NotFound:
        raise Refused(404, f"volume {call.part('volume')[:80]} not found") from None


def _shown(record: VolumeRecord) -> dict[str, str]:
    return {"volumeID": record.id, "name": record.name}


def _opened(call: Call, record: VolumeRecord) -> dict[str, str]:
    return {**_shown(record), "token": call.tokens.of("volume", record.id)}
