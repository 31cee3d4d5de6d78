"""A secret as both clients name it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

from corral.errors import InvalidArgument
from corral.schema.secret import Secret as SecretInfo
from corral.schema.secret import SecretUse
from corral.sdk import faults


class NamedSecret:
    """Which secret, and whether a sandbox created with it may read it."""

    def __init__(self, name: str, *, expose: bool = False, env: str | None = None, info: SecretInfo | None = None) -> None:
        self.name = name
        self.expose = expose
        self.env = env
        """The variable, when it is not called like the secret."""
        self.info = info
        """What the server said of it; None for one that was only named."""

    @classmethod
    def named(cls, name: str, *, expose: bool = False, env: str | None = None) -> Self:
        """One that is there already, without asking. `expose`: as an environment variable (called `env`, else like the secret) of a sandbox created with it."""
        return cls(name, expose=expose, env=env)

    def __repr__(self) -> str:
        return f"<Secret {self.name}{' exposed' if self.expose else ''}>"


def uses(secrets: Iterable[NamedSecret]) -> list[SecretUse]:
    """As a request for a sandbox names them."""
    found: list[SecretUse] = []
    for secret in secrets:
        if not secret.expose:
            raise InvalidArgument(
                f"secrets: {secret.name} would be readable inside the sandbox",
                hint=f'ask for it with Secret.named("{secret.name}", expose=True), or leave it outside: an egress rule with inject= uses it there',
            )
        found.append(faults.build(SecretUse, name=secret.name, env=secret.env))
    return found
