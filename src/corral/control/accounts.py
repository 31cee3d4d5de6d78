"""Projects and keys. They are few and asked for by every request, so all living ones are in memory; changes are stored before they are answered."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Callable, Collection

from corral.control.ports import AccountRows
from corral.control.quota import Limits
from corral.control.record import moment
from corral.control.roles import Actor
from corral.errors import Conflict, InvalidArgument, NotFound, Unauthenticated
from corral.ids import new_id
from corral.schema.account import Key, KeyCreate, NewKey, Project, ProjectCreate, Role

_LENT = "cl_"
"""How credentials begin that processes of ours have."""
_KINDS = ("ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp", "sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com")
DEFAULT = "default"
"""The project that is always there."""
OWN = "corral.own"
"""The project of what the server makes for itself. It has no limits, and no key; no other can have such a name."""


class Accounts:
    """Who may come in, and what projects there are."""

    def __init__(self, rows: AccountRows, clock: Callable[[], float]) -> None:
        self._rows = rows
        self._clock = clock
        self._projects: dict[str, Project] = {}
        self._keys: dict[str, Key] = {}
        self._digests: dict[str, str] = {}
        self._secret = b""
        self.on_revoked: Callable[[], None] = lambda: None
        """Told that a key is no longer one."""

    async def open(self, secret: bytes = b"") -> str | None:
        """Load them. `secret`: what the credentials of our own processes are made with; without one there are none. At the very first start the default project and an admin key are made: its value is returned this once."""
        self._secret = secret
        self._projects = {project.name: project for project in await self._rows.projects()}
        for key, digest in await self._rows.keys():
            self._keys[digest] = key
            self._digests[key.id] = digest
        if DEFAULT not in self._projects:
            await self._add_project(ProjectCreate.model_validate({"name": DEFAULT}))
        if any(key.role is Role.ADMIN for key in self._keys.values()):
            return None
        return (await self.add_key(KeyCreate.model_validate({"name": "admin", "role": Role.ADMIN}))).value

    def authenticate(self, value: str) -> Actor:
        """Who this key is. Raises `Unauthenticated`."""
        if value.startswith(_LENT):
            return self._lent(value)
        digest = _digest(value)
        key = self._keys.get(digest)
        # The lookup is by a hash that nobody can steer; the comparison takes the same time for all.
        if key is None or not hmac.compare_digest(digest, self._digests[key.id]):
            raise Unauthenticated("this API key is unknown or revoked", hint="pass a living key of this server as `Authorization: Bearer ck_…`")
        return Actor(key.id, key.project, key.role)

    def lend(self, actor: Actor) -> str:
        """A credential that acts as this actor's key for as long as the key lives: for a process of ours that has seen who it is."""
        return f"{_LENT}{actor.key}.{self._proof(actor.key)}"

    def _lent(self, value: str) -> Actor:
        id, _, proof = value.removeprefix(_LENT).partition(".")
        key = self._keys.get(self._digests.get(id, ""))
        if not self._secret or key is None or not hmac.compare_digest(proof.encode(), self._proof(id).encode()):
            raise Unauthenticated("this credential is none of this server's, or its key was revoked", hint="log in again")
        return Actor(key.id, key.project, key.role)

    def _proof(self, id: str) -> str:
        return hmac.digest(self._secret, b"lent\n" + id.encode(), hashlib.sha256).hex()

    def by_public_key(self, public_key: str) -> list[Actor]:
        """Whose keys have this public key of SSH."""
        return [Actor(key.id, key.project, key.role) for key in self._keys.values() if key.public_key == public_key]

    def known(self, value: str) -> bool:
        """Whether this is a living key."""
        return _digest(value) in self._keys

    # Projects

    def projects(self) -> list[Project]:
        return list(self._projects.values())

    def project(self, name: str) -> Project:
        if (project := self._projects.get(name)) is None:
            raise NotFound(f"there is no project {name}", hint="GET /v1/projects lists them")
        return project

    def limits(self, project: str) -> Limits:
        """What the project may have at once."""
        if project == OWN:
            return Limits()
        of = self.project(project)
        return Limits(sandboxes=of.max_sandboxes, cpu=of.max_cpu, memory=of.max_memory, disk=of.max_disk)

    async def add_project(self, wanted: ProjectCreate) -> Project:
        """Raises `Conflict` when the name is taken."""
        if wanted.name in self._projects:
            raise Conflict(f"there is a project {wanted.name} already", hint="choose another name")
        return await self._add_project(wanted)

    async def _add_project(self, wanted: ProjectCreate) -> Project:
        project = Project(created_at=moment(self._clock()), **wanted.model_dump())
        self._projects[project.name] = project
        try:
            await self._rows.add_project(project)
        except BaseException:
            del self._projects[project.name]
            raise
        return project

    async def remove_project(self, name: str) -> None:
        """Remove it and revoke its keys. The caller has looked that it is empty."""
        self.project(name)
        if name == DEFAULT:
            raise Conflict("the default project can't be removed", hint="delete its sandboxes instead")
        theirs = [key for key in self._keys.values() if key.project == name]
        self._keep_an_admin(theirs)
        for key in theirs:
            await self.revoke(key.id)
        del self._projects[name]
        await self._rows.remove_project(name)

    # Keys

    def keys(self) -> list[Key]:
        return list(self._keys.values())

    async def add_key(self, wanted: KeyCreate) -> NewKey:
        """A new key; its value is known to nobody afterwards."""
        self.project(wanted.project)
        public_key = None if wanted.public_key is None else _public_key(wanted.public_key)
        if public_key is not None and any(actor.project == wanted.project for actor in self.by_public_key(public_key)):
            raise Conflict("there is a key with this public key in the project already", hint="revoke it first: nobody could tell which of them logs in")
        value = "ck_" + secrets.token_hex(20)
        key = Key(id=new_id("ke"), name=wanted.name, project=wanted.project, role=wanted.role, created_at=moment(self._clock()), public_key=public_key)
        digest = _digest(value)
        await self._rows.add_key(key, digest)
        self._keys[digest] = key
        self._digests[key.id] = digest
        return NewKey(**key.model_dump(), value=value)

    async def revoke(self, id: str) -> None:
        """At once. Raises `Conflict` for the last admin's key, without which nobody could administer any more."""
        if (digest := self._digests.get(id)) is None:
            raise NotFound(f"there is no key {id}", hint="GET /v1/keys lists them")
        key = self._keys[digest]
        self._keep_an_admin([key])
        del self._keys[digest], self._digests[id]
        self.on_revoked()
        await self._rows.revoke_key(id, moment(self._clock()))

    def _keep_an_admin(self, leaving: Collection[Key]) -> None:
        if any(key.role is Role.ADMIN for key in leaving) and not any(key.role is Role.ADMIN for key in self._keys.values() if key not in leaving):
            raise Conflict("this is the last admin key", hint="create another one first")


def _public_key(text: str) -> str:
    """A public key of SSH without its comment. Raises `InvalidArgument`."""
    kind, blob = text.split()[:2]
    try:
        raw = base64.b64decode(blob, validate=True)
    except ValueError:
        raw = b""
    if not kind.startswith(_KINDS) or raw[:4] != len(kind).to_bytes(4, "big") or raw[4 : 4 + len(kind)] != kind.encode():
        raise InvalidArgument("public_key is none of SSH", hint="pass what is in a file such as ~/.ssh/id_ed25519.pub", details={"field": "public_key"})
    return f"{kind} {blob}"


def _digest(value: str) -> str:
    return hashlib.sha256(value.encode(errors="surrogateescape")).hexdigest()
