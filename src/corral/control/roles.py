"""Who may do what. A key belongs to a project and has a role; what is not in its project does not exist for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from corral.errors import Forbidden, NotFound
from corral.schema.account import Role


class Permission(StrEnum):
    """What a route asks of a key."""

    LOOK = "look"
    USE = "use"
    ADMINISTER = "administer"


GRANTS: Mapping[Role, frozenset[Permission]] = {
    Role.READER: frozenset({Permission.LOOK}),
    Role.MEMBER: frozenset({Permission.LOOK, Permission.USE}),
    Role.ADMIN: frozenset(Permission),
}


@dataclass(frozen=True)
class Actor:
    """Who asks: a key, and the project in which it acts (an admin's may be any)."""

    key: str
    project: str
    role: Role

    def require(self, permission: Permission) -> None:
        """Raises `Forbidden` when the role does not grant it."""
        if permission not in GRANTS[self.role]:
            needed = next(role for role, granted in GRANTS.items() if permission in granted)
            raise Forbidden(f"a key with the role {self.role} may not do this", hint=f"use a key with the role {needed}", details={"role": self.role})


def acting_in(actor: Actor, project: str) -> Actor:
    """The same key in another project, which only an admin's may enter. For others it does not exist."""
    if project == actor.project:
        return actor
    if actor.role is not Role.ADMIN:
        raise NotFound(f"there is no project {project}", hint="leave the project out: a key has only one")
    return replace(actor, project=project)
