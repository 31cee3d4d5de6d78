"""Where the project's own servers are told what happens to its sandboxes."""

from __future__ import annotations

import builtins
import json
from collections.abc import Mapping, Sequence
from typing import Any

from corral.schema.webhook import EventWebhook, EventWebhookCreate, EventWebhooks, EventWebhookUpdate
from corral.sdk import faults
from corral.sdk._async.transport import Transport


class WebhookList:
    """`client.webhooks`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def create(
        self, url: str, *, kinds: Sequence[str] | None = None, tags: Mapping[str, str] | None = None, name: str = "", secret: str | None = None
    ) -> EventWebhook:
        """Have a signed request sent there for each event of these kinds from now on, of sandboxes with these tags. Without a `secret` of yours the answer has one, this once."""
        given: dict[str, Any] = {"url": url, "name": name, "tags": dict(tags or {})}
        given |= ({} if kinds is None else {"kinds": [*kinds]}) | ({} if secret is None else {"secret": secret})
        body = await self._transport.call("POST", "/v1/webhooks", body=_body(EventWebhookCreate, given), key=faults.new_key())
        return faults.decode(EventWebhook, body)

    async def list(self) -> builtins.list[EventWebhook]:
        """The oldest first."""
        return faults.decode(EventWebhooks, await self._transport.call("GET", "/v1/webhooks")).webhooks

    async def get(self, id: str) -> EventWebhook:
        return faults.decode(EventWebhook, await self._transport.call("GET", "/v1/webhooks/" + faults.segment(id)))

    async def update(self, id: str, **changes: Any) -> EventWebhook:
        """Change `url`, `kinds`, `tags`, `name`, `secret`, or whether it is `enabled`."""
        body = await self._transport.call("PATCH", "/v1/webhooks/" + faults.segment(id), body=_body(EventWebhookUpdate, changes), safe=True)
        return faults.decode(EventWebhook, body)

    async def delete(self, id: str) -> None:
        """Nothing is told there any more."""
        await self._transport.call("DELETE", "/v1/webhooks/" + faults.segment(id))


def _body(model: type[EventWebhookCreate] | type[EventWebhookUpdate], given: Mapping[str, Any]) -> bytes:
    faults.build(model, **given)
    # Written by hand: the type of the secret shows asterisks wherever it is printed.
    return json.dumps(given).encode()
