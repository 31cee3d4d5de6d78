"""/secrets of E2B: values put into headers on their way out (`${e2b.secrets.name}` in network rules). They are never told again."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, SecretStr
from starlette.responses import Response

from corral.control.roles import Permission
from corral.facades.e2b.body import Body
from corral.facades.e2b.refusal import Refused
from corral.facades.e2b.rest.call import Call, told
from corral.schema.secret import Secret, SecretCreate

_PAGE = 100


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
    _check(wanted)
    made = await call.services.secrets.create(call.actor, _native(wanted.name.lower(), wanted))
    return told(_shown(made), 201)


async def listing(call: Call) -> Response:
    """By name, in pages."""
    call.actor.require(Permission.LOOK)
    limit, after = call.number("limit", _PAGE, most=_PAGE) or _PAGE, call.query("nextToken")
    found = [secret for secret in await call.services.secrets.all(call.actor.project) if after is None or secret.name > after]
    headers = {"X-Next-Token": found[limit - 1].name} if len(found) > limit else None
    return told([_shown(secret) for secret in found[:limit]], headers=headers)


async def get(call: Call) -> Response:
    call.actor.require(Permission.LOOK)
    return told(_shown(await _found(call)))


async def change(call: Call) -> Response:
    """Another value, which rules use at once."""
    call.actor.require(Permission.USE)
    wanted = await call.body(NewValue)
    _check(wanted)
    secret = await _found(call)
    return told(_shown(await call.services.policies.change_secret(call.actor, _native(secret.name, wanted))))


async def delete(call: Call) -> Response:
    call.actor.require(Permission.USE)
    await call.services.policies.delete_secret(call.actor, (await _found(call)).name)
    return Response(status_code=204)


async def _found(call: Call) -> Secret:
    """By its id or name."""
    ref = call.part("secret").strip()
    for secret in await call.services.secrets.all(call.actor.project):
        if secret.id == ref or secret.name.lower() == ref.lower():
            return secret
    raise Refused(404, f"secret {ref[:80]} not found")


def _check(wanted: NewValue) -> None:
    if wanted.metadata:
        raise Refused(400, "metadata: secrets have none here")


def _native(name: str, wanted: NewValue) -> SecretCreate:
    return SecretCreate(name=name, value=wanted.value)


def _shown(secret: Secret) -> dict[str, Any]:
    return {
        "secretID": secret.id,
        "name": secret.name,
        "currentVersion": 1,
        "metadata": {},
        "createdAt": secret.created_at.isoformat(),
        "updatedAt": secret.changed_at.isoformat(),
    }
