"""/secrets of E2B: values put into headers on their way out (`${e2b.secrets.name}` in network rules). They are never told again."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, SecretStr, ValidationError
from starlette.responses import Response

from corral.api import errors
from corral.control.roles import Permission
from corral.facades.e2b.body import Body
from corral.facades.e2b.refusal import Refused
from corral.facades.e2b.rest.call import Call, told
from corral.schema.secret import Secret, SecretCreate


class NewValue(Body):
    """POST /secrets/{id}."""

    model_config = ConfigDict(hide_input_in_errors=True)

    value: SecretStr
    metadata: dict[str, str] | None = None


class NewSecret(NewValue):
    """POST /secrets."""

    name: str


async def create(call: Call) -> Response:
    call.actor.require(Permission.USE)
    wanted = await call.body(NewSecret)
    made = await call.services.secrets.create(call.actor, _native(wanted.name.lower(), wanted))
    return told(_shown(made), 201)


async def listing(call: Call) -> Response:
    """By name, in pages."""
    call.actor.require(Permission.LOOK)
    found, headers = call.page(await call.services.secrets.all(call.actor.project), lambda secret: secret.name)
    return told([_shown(secret) for secret in found], headers=headers)


async def get(call: Call) -> Response:
    call.actor.require(Permission.LOOK)
    return told(_shown(await _found(call)))


async def change(call: Call) -> Response:
    """Another value, which rules use at once."""
    call.actor.require(Permission.USE)
    wanted = await call.body(NewValue)
    secret = await _found(call)
    return told(_shown(await call.services.policies.change_secret(call.actor, _native(secret.name, wanted))))


async def delete(call: Call) -> Response:
    call.actor.require(Permission.USE)
    await call.services.policies.delete_secret(call.actor, (await _found(call)).name)
    return Response(status_code=204)


async def _found(call: Call) -> Secret:
    """By its id or name. Names have no upper case here, as rules know them; secrets of Corral's own that differ in that alone are found by their ids."""
    ref = call.part("secret").strip()
    for secret in await call.services.secrets.all(call.actor.project):
        if secret.id == ref or secret.name == ref.lower():
            return secret
    raise Refused(404, f"secret {ref[:80]} not found")


def _native(name: str, wanted: NewValue) -> SecretCreate:
    """Raises `Refused`."""
    if name.startswith("sec_"):
        raise Refused(400, f"name: {name[:80]!r} begins as ids of secrets do")
    try:
        return SecretCreate(name=name, value=wanted.value, tags=wanted.metadata)
    except ValidationError as error:
        told = errors.invalid(error, show=False).message
        raise Refused(400, told.replace("tags", "metadata", 1) if told.startswith("tags") else told) from None


def _shown(secret: Secret) -> dict[str, Any]:
    return {
        "secretID": secret.id,
        "name": secret.name,
        "currentVersion": secret.version,
        "metadata": secret.tags,
        "createdAt": secret.created_at.isoformat(),
        "updatedAt": secret.changed_at.isoformat(),
    }
