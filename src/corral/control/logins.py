"""Who may log in to a sandbox by SSH: with an API key or a token that is good for one login as the password, or with a public key that belongs to an API key."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from corral.control.accounts import Accounts
from corral.control.record import moment
from corral.control.roles import Actor, Permission, acting_in
from corral.control.sandboxes import Sandboxes
from corral.errors import CorralError, Unsupported
from corral.schema.ssh import SshAccess
from corral.ssh.keeper import Granted, Login

TOKEN_SECONDS = 600.0
TOKENS = 10_000
"""Tokens at a time; then the oldest end."""
_START = "co_"


class Server(Protocol):
    """Where SSH is served."""

    @property
    def port(self) -> int: ...
    @property
    def host_key(self) -> str: ...


@dataclass(frozen=True)
class _Token:
    sandbox: str
    actor: Actor
    expires: float


class Logins:
    """Implements `ssh.keeper.Knowledge`. Tokens are in memory only: those of an earlier server are no good."""

    def __init__(self, *, sandboxes: Sandboxes, accounts: Accounts, clock: Callable[[], float] = time.time) -> None:
        self._sandboxes = sandboxes
        self._accounts = accounts
        self._clock = clock
        self._tokens: dict[str, _Token] = {}
        self._server: Server | None = None
        self._host = ""
        self._why_not = "the server is still starting"

    def open(self, server: Server, host: str) -> None:
        """`host`: how clients reach it."""
        self._server, self._host = server, host

    def closed(self, why: str) -> None:
        """There is no SSH here."""
        self._why_not = why

    async def access(self, actor: Actor, sandbox: str) -> SshAccess:
        """How to log in, once. Raises `Unsupported` when SSH is not served here."""
        if self._server is None:
            raise Unsupported(f"SSH is not served here: {self._why_not}", hint="`corral exec` and `corral shell` need no SSH")
        record = (await self._sandboxes.ledger.use(actor.project, sandbox)).record
        now = self._clock()
        for digest in [digest for digest, token in self._tokens.items() if token.expires <= now]:
            del self._tokens[digest]
        if len(self._tokens) >= TOKENS:
            del self._tokens[next(iter(self._tokens))]
        value = _START + secrets.token_hex(20)
        self._tokens[_digest(value)] = _Token(record.id, actor, now + TOKEN_SECONDS)
        return SshAccess(
            host=self._host,
            port=self._server.port,
            user=record.id,
            host_key=self._server.host_key,
            token=value,
            expires_at=moment(now + TOKEN_SECONDS),
        )

    async def admit(self, login: Login) -> Granted | None:
        """Whom the first of its credentials that is good for the sandbox stands for; None: nobody."""
        for actor in self._actors(login):
            if (granted := await self._granted(actor, login.sandbox)) is not None:
                if login.credential is not None:
                    self._sandboxes.ledger.log.note("ssh.login", granted.project, sandbox=granted.sandbox, actor=actor.key, data={})
                return granted
        return None

    def _actors(self, login: Login) -> list[Actor]:
        if login.public_key is not None:
            return self._accounts.by_public_key(login.public_key)
        password = login.password or ""
        if password.startswith(_START):
            token = self._tokens.pop(_digest(password), None)
            named = token is not None and token.sandbox in (login.sandbox, self._id_of(token.actor.project, login.sandbox))
            return [token.actor] if token is not None and named and token.expires > self._clock() else []
        try:
            return [self._accounts.authenticate(login.credential or password)]
        except CorralError:
            return []

    def _id_of(self, project: str, name: str) -> str | None:
        living = self._sandboxes.ledger.find(project, name)
        return None if living is None else living.record.id

    async def _granted(self, actor: Actor, sandbox: str) -> Granted | None:
        living = self._sandboxes.ledger.registry.get(sandbox)
        try:
            if living is not None:
                actor = acting_in(actor, living.record.project)
            actor.require(Permission.USE)
            record = (await self._sandboxes.ledger.use(actor.project, sandbox)).record
            credential = self._accounts.lend(actor)
            self._accounts.authenticate(credential)
        except CorralError:
            return None
        return Granted(record.id, actor.project, credential)


def _digest(value: str) -> str:
    return hashlib.sha256(value.encode(errors="surrogateescape")).hexdigest()
