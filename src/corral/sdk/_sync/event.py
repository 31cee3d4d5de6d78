# Generated from sdk/_async/event.py by scripts/async_to_sync.py: edit that, not this.
"""The server's events: those that were, and with `follow` those that come."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing

from corral.schema.observe import Event, Events
from corral.sdk import faults
from corral.sdk._sync import stream
from corral.sdk._sync.transport import Query, Transport


def events(transport: Transport, *, sandbox: str | None = None, kind: str | None = None, after: int = 0, follow: bool = False) -> Generator[Event, None]:
    """Events with a `seq` greater than `after`, oldest first. Followed, they never end and lose nothing when the connection breaks."""
    query: Query = {"sandbox": sandbox, "kind": kind, "after": after}
    while not follow:
        page = faults.decode(Events, transport.call("GET", "/v1/events", query={**query, "after": after})).events
        if not page:
            return
        for one in page:
            yield one
        after = page[-1].seq
    with closing(stream.follow(transport, "/v1/events", {**query, "follow": True})) as parts:
        for part in parts:
            yield faults.decode(Event, part.data)
