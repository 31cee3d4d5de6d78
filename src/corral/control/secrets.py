"""Secrets: values that are used on a sandbox's behalf. They are encrypted wherever they rest, and decrypted only to be handed to the node."""

from __future__ import annotations

from collections.abc import Callable, Collection

from corral.control.events import EventLog
from corral.control.ports import KeyRing, SecretRows
from corral.control.record import moment
from corral.control.roles import Actor
from corral.errors import Conflict, NotFound, QuotaExceeded
from corral.ids import new_id
from corral.schema.secret import Secret, SecretCreate

MOST = 1000
"""Secrets of a project."""


class Secrets:
    """Those of all projects. Nothing but `values` gives a value away."""

    def __init__(self, rows: SecretRows, keys: KeyRing, events: EventLog, clock: Callable[[], float]) -> None:
        self._rows = rows
        self._keys = keys
        self._events = events
        self._clock = clock

    async def create(self, actor: Actor, wanted: SecretCreate) -> Secret:
        """Raises `Conflict` when the project has one of this name, `QuotaExceeded` when it has too many."""
        if await self._rows.count(actor.project) >= MOST:
            raise QuotaExceeded(f"the project has {MOST:,} secrets, the most there can be", hint="delete those that nobody uses")
        now = moment(self._clock())
        secret = Secret(id=new_id("se"), name=wanted.name, project=actor.project, tags=wanted.tags or {}, created_at=now, changed_at=now)
        if not await self._rows.add(secret, await self._seal(secret, wanted)):
            raise Conflict(
                f"the project has a secret {wanted.name} already", hint="PUT /v1/secrets/{name} gives it another value", details={"name": wanted.name}
            )
        self._tell("created", actor, secret)
        return secret

    async def all(self, project: str) -> list[Secret]:
        """By name."""
        return await self._rows.all(project)

    async def get(self, project: str, name: str) -> Secret:
        """Raises `NotFound`."""
        return (await self._sealed(project, [name]))[0][0]

    async def change(self, actor: Actor, wanted: SecretCreate) -> Secret:
        """Another value under the same name, and other tags if some are given. Raises `NotFound`."""
        secret = await self.get(actor.project, wanted.name)
        changed = await self._rows.change(secret.id, await self._seal(secret, wanted), wanted.tags, moment(self._clock()))
        if changed is None:
            raise _unknown(actor.project, wanted.name)
        self._tell("changed", actor, changed)
        return changed

    async def delete(self, actor: Actor, name: str) -> None:
        """The caller has looked that no sandbox needs it. Raises `NotFound`."""
        secret = await self.get(actor.project, name)
        if not await self._rows.remove(actor.project, name):
            raise _unknown(actor.project, name)
        self._tell("deleted", actor, secret)

    async def values(self, project: str, names: Collection[str]) -> dict[str, str]:
        """What they hold, to be handed on and not kept. Raises `NotFound` for a name that is none's."""
        if not names:
            return {}
        found = await self._sealed(project, names)
        opened = {secret.name: (await self._keys.unseal(sealed, _about(secret))).decode("utf-8", "surrogatepass") for secret, sealed in found}
        self._rows.used([secret.id for secret, _ in found], moment(self._clock()))
        return opened

    async def _sealed(self, project: str, names: Collection[str]) -> list[tuple[Secret, bytes]]:
        found = await self._rows.sealed(project, names)
        for name in sorted(set(names) - {secret.name for secret, _ in found}):
            raise _unknown(project, name)
        return found

    async def _seal(self, secret: Secret, wanted: SecretCreate) -> bytes:
        return await self._keys.seal(wanted.value.get_secret_value().encode("utf-8", "surrogatepass"), _about(secret))

    def _tell(self, what: str, actor: Actor, secret: Secret) -> None:
        self._events.note(f"secret.{what}", actor.project, actor=actor.key, data={"name": secret.name, "id": secret.id})


def _about(secret: Secret) -> bytes:
    return f"{secret.project}\0{secret.id}".encode()


def _unknown(project: str, name: str) -> NotFound:
    return NotFound(
        f"the project {project} has no secret {name[:80]}", hint="create it with `corral secret create`, or POST /v1/secrets", details={"secret": name[:80]}
    )
