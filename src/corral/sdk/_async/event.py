"""The server's events: those that were, and with `follow` those that come."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from corral.schema.observe import Event, Events
from corral.sdk import faults
from corral.sdk._async import stream
from corral.sdk._async.transport import Query, Transport


async def events(
    transport: Transport, *, sandbox: str | None = None, kind: str | None = None, after: int = 0, follow: bool = False
) -> AsyncGenerator[Event, None]:
    """Events with a `seq` greater than `after`, oldest first. Followed, they never end and lose nothing when the connection breaks."""
    query: Query = {"sandbox": sandbox, "kind": kind, "after": after}
    while not follow:
        page = faults.decode(Events, await transport.call("GET", "/v1/events", query={**query, "after": after})).events
        if not page:
            return
        for one in page:
            yield one
        after = page[-1].seq
    async with aclosing(stream.follow(transport, "/v1/events", {**query, "follow": True})) as parts:
        async for part in parts:
            yield faults.decode(Event, part.data)
