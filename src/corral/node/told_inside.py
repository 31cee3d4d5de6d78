"""What a sandbox was denied, as a file inside it: whoever gets "no route to host" there can read why. One line of JSON for each destination, the oldest dropped.

A denial that is there already changes nothing: a program that tries for ever must not keep its sandbox awake by that.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import structlog

from corral.errors import CorralError
from corral.node.files import Files
from corral.schema.egress import Flow

PATH = "/run/corral/denials"
MOST = 50
"""Destinations in it."""
PAUSE = 0.05
"""Seconds in which denials gather before they are written."""
LONGEST = 300
"""Characters of one field."""
_FIELDS = ("name", "address", "port", "kind", "method", "path", "rule", "reason")

log = structlog.get_logger(__name__)


class ToldInside:
    """Of one running sandbox."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._lines: dict[str, str] = {}
        self._writing: asyncio.Task[None] | None = None
        self._fresh = False

    def add(self, flow: Flow) -> None:
        told = {name: value[:LONGEST] if isinstance(value, str) else value for name in _FIELDS if (value := getattr(flow, name)) is not None}
        key = json.dumps(told)
        if key in self._lines:
            return
        self._lines[key] = json.dumps({"at": flow.at.isoformat(timespec="seconds"), **told}, ensure_ascii=False)
        while len(self._lines) > MOST:
            del self._lines[next(iter(self._lines))]
        self._fresh = True
        if self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(self._write(), name="denials inside")

    def close(self) -> None:
        if self._writing is not None:
            self._writing.cancel()

    async def _write(self) -> None:
        try:
            while self._fresh:
                await asyncio.sleep(PAUSE)
                self._fresh = False
                data = "".join(line + "\n" for line in self._lines.values()).encode("utf-8", "replace")
                await self._files.write(PATH, _whole(data), mode=0o644, user="0", parents=True)
        except CorralError as error:
            # Its disk is full, or it is about to end. The next denial tries again; the flow log has them all.
            log.debug("denials_not_told_inside", error=error.message)
        finally:
            self._writing = None


async def _whole(data: bytes) -> AsyncIterator[bytes]:
    yield data
