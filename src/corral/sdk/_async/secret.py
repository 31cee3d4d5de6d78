"""Secrets: made and named here, used elsewhere; their values go to the server and never come back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from corral.schema.secret import Secret as SecretInfo
from corral.schema.secret import SecretCreate, Secrets
from corral.sdk import faults
from corral.sdk._async.transport import Transport
from corral.sdk.secret import NamedSecret

if TYPE_CHECKING:
    from corral.sdk._async.client import Client


class Secret(NamedSecret):
    """A secret by its name. Egress rules use its value outside of sandboxes; inside, it is a variable only when asked for with `expose=True`."""

    @classmethod
    async def create(cls, name: str, value: str, *, tags: Mapping[str, str] | None = None, client: Client | None = None) -> Secret:
        """A new secret of the project. Raises `Conflict` when there is one of this name."""
        return await (client or await _default()).secrets.create(name, value, tags=tags)

    @classmethod
    async def get(cls, name: str, *, client: Client | None = None) -> Secret:
        """Raises `NotFound`."""
        return await (client or await _default()).secrets.get(name)

    @classmethod
    async def list(cls, *, client: Client | None = None) -> list[Secret]:
        """The project's, by name."""
        return await (client or await _default()).secrets.list()

    @classmethod
    async def delete(cls, name: str, *, client: Client | None = None) -> None:
        """Raises `Conflict` while a living sandbox uses it."""
        await (client or await _default()).secrets.delete(name)


class SecretList:
    """The secrets of the key's project."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def create(self, name: str, value: str, *, tags: Mapping[str, str] | None = None) -> Secret:
        """A new secret. `tags` are for all to read. Raises `Conflict` when there is one of this name."""
        return _secret(await self._transport.call("POST", "/v1/secrets", body=_body(name, value, tags), key=faults.new_key()))

    async def change(self, name: str, value: str, *, tags: Mapping[str, str] | None = None) -> Secret:
        """Another value, its next version. Egress rules use it at once; variables have it from a sandbox's next start on. `tags`: in place of those it has."""
        return _secret(await self._transport.call("PUT", "/v1/secrets/" + faults.segment(name), body=_body(name, value, tags), safe=True))

    async def get(self, name: str) -> Secret:
        return _secret(await self._transport.call("GET", "/v1/secrets/" + faults.segment(name)))

    async def list(self) -> list[Secret]:
        found = faults.decode(Secrets, await self._transport.call("GET", "/v1/secrets")).secrets
        return [Secret(info.name, info=info) for info in found]

    async def delete(self, name: str) -> None:
        """Raises `Conflict` while a living sandbox uses it."""
        await self._transport.call("DELETE", "/v1/secrets/" + faults.segment(name))


def _body(name: str, value: str, tags: Mapping[str, str] | None) -> bytes:
    given = None if tags is None else dict(tags)
    faults.build(SecretCreate, name=name, value=value, tags=given)
    # Written by hand: the type shows asterisks wherever it is printed.
    return json.dumps({"name": name, "value": value, "tags": given}).encode()


def _secret(body: bytes) -> Secret:
    info = faults.decode(SecretInfo, body)
    return Secret(info.name, info=info)


async def _default() -> Client:
    from corral.sdk._async.client import default_client

    return await default_client()
