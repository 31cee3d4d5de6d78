"""Watching directories, as E2B's clients do it: a stream of events (WatchDir), or a watcher that is asked for them (CreateWatcher and its siblings)."""

from __future__ import annotations

import asyncio
import posixpath
import secrets
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response

from corral import errors
from corral.control.ports import Watching
from corral.facades.e2b.envd import fields
from corral.facades.e2b.envd.connect import Code, Message, RpcError, deadline, streaming, unary
from corral.facades.e2b.envd.entry import described
from corral.facades.e2b.inside import Inside, at
from corral.schema.file import Kind, WatchEvent

KEPT = 10_000
"""Events a watcher keeps for who asks for them; the oldest go first."""
UNASKED = 3600.0
"""Seconds after which a watcher that nobody asks is removed."""
PATIENCE = 0.1
"""Seconds that an asker waits for a change when there is none yet, and at most while they come."""
QUIET = 0.01
"""Seconds without a change after which all that there were have come."""
WATCHERS = 256
"""Watchers of one sandbox; a client that has more forgets to remove them."""
_TYPES = {"create": "EVENT_TYPE_CREATE", "write": "EVENT_TYPE_WRITE", "remove": "EVENT_TYPE_REMOVE", "rename": "EVENT_TYPE_RENAME", "chmod": "EVENT_TYPE_CHMOD"}


@dataclass
class Watcher:
    """Collects events until it is removed. `failure` is told to the next who asks."""

    sandbox: str
    top: str
    task: asyncio.Task[None] | None = None
    events: deque[Message] = field(default_factory=lambda: deque[Message](maxlen=KEPT))
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    failure: Exception | None = None
    forget: asyncio.TimerHandle | None = None


class Watchers:
    """All that were created through this server."""

    def __init__(self) -> None:
        self._watchers: dict[str, Watcher] = {}

    async def create(self, request: Request, inside: Inside) -> Response:
        async def call(message: Message) -> Message:
            id = inside.record.id
            if sum(one.sandbox == id for one in self._watchers.values()) >= WATCHERS:
                raise RpcError(Code.RESOURCE_EXHAUSTED, f"{WATCHERS} watchers of this sandbox are open; remove some")
            watching, top = await _opened(inside, message)
            watcher = Watcher(id, top)
            name = "w" + secrets.token_hex(8)
            self._watchers[name] = watcher
            entries = fields.flag(message, "includeEntry")
            watcher.task = asyncio.get_running_loop().create_task(_collect(inside, watcher, watching, top, entries=entries))
            self._asked(name, watcher)
            return {"watcherId": name}

        return await unary(request, call)

    async def events(self, request: Request, inside: Inside) -> Response:
        async def call(message: Message) -> Message:
            name, watcher = self._find(inside, message)
            self._asked(name, watcher)
            await _settled(inside, watcher)
            if not watcher.events and watcher.failure is not None:
                raise watcher.failure
            events = list(watcher.events)
            watcher.events.clear()
            return {"events": events}

        return await unary(request, call)

    async def remove(self, request: Request, inside: Inside) -> Response:
        async def call(message: Message) -> Message:
            name, _ = self._find(inside, message)
            self._remove(name)
            return {}

        return await unary(request, call)

    def close(self) -> None:
        for name in list(self._watchers):
            self._remove(name)

    def _find(self, inside: Inside, message: Message) -> tuple[str, Watcher]:
        name = fields.text(message, "watcherId")
        watcher = self._watchers.get(name)
        if watcher is None or watcher.sandbox != inside.record.id:
            raise RpcError(Code.NOT_FOUND, f"watcher with id {name[:80]} not found")
        return name, watcher

    def _asked(self, name: str, watcher: Watcher) -> None:
        if watcher.forget is not None:
            watcher.forget.cancel()
        watcher.forget = asyncio.get_running_loop().call_later(UNASKED, self._remove, name)

    def _remove(self, name: str) -> None:
        watcher = self._watchers.pop(name)
        if watcher.forget is not None:
            watcher.forget.cancel()
        if watcher.task is not None:
            watcher.task.cancel()


async def _settled(inside: Inside, watcher: Watcher) -> None:
    """Until what was done before the question has come. The guest is asked for something meanwhile, which takes the longer the busier it is."""
    began = asyncio.get_running_loop().time()
    while watcher.failure is None:
        watcher.changed.clear()
        with suppress(errors.CorralError):
            await inside.files.stat(at(watcher.top))
        with suppress(TimeoutError):
            async with asyncio.timeout(QUIET):
                await watcher.changed.wait()
        if (watcher.events and not watcher.changed.is_set()) or asyncio.get_running_loop().time() - began > PATIENCE:
            return


async def watch_dir(request: Request, inside: Inside) -> Response:
    """A stream of events, after a first message that says that nothing is missed from now on."""

    async def call(message: Message) -> AsyncGenerator[Message, None]:
        watching, top = await _opened(inside, message)
        try:
            yield {"start": {}}
            async for _, event in watching:
                for told in await _told(inside, event, top, entries=fields.flag(message, "includeEntry")):
                    yield {"filesystem": told}
        finally:
            await watching.aclose()

    return await streaming(request, inside.services.streams, call, sign={"keepalive": {}}, timeout=deadline(request))


async def _opened(inside: Inside, message: Message) -> tuple[Watching, str]:
    path = await inside.path(fields.text(message, "path"))
    try:
        found = await inside.files.stat(at(path), follow=True)
    except (errors.FileNotFound, errors.NotADirectory):
        raise RpcError(Code.NOT_FOUND, f"path {path} not found") from None
    if found.type is not Kind.DIRECTORY:
        raise RpcError(Code.INVALID_ARGUMENT, f"path {path} not a directory")
    if not fields.flag(message, "allowNetworkMounts") and any(beneath(path, use.path) for use in inside.record.volumes):
        raise RpcError(
            Code.INVALID_ARGUMENT,
            f"cannot watch path on network filesystem: {path}: what others change in a volume is not seen; allow network mounts to watch the rest",
        )
    watching = inside.files.watch(at(path), recursive=fields.flag(message, "recursive"))
    await watching.__aenter__()
    return watching, path


async def _collect(inside: Inside, watcher: Watcher, watching: Watching, top: str, *, entries: bool) -> None:
    try:
        async for _, event in watching:
            watcher.events.extend(await _told(inside, event, top, entries=entries))
            watcher.changed.set()
    except (errors.CorralError, RpcError) as error:
        watcher.failure = error
        watcher.changed.set()
    finally:
        await watching.aclose()


async def _told(inside: Inside, event: WatchEvent, top: str, *, entries: bool) -> list[Message]:
    """One change as E2B tells it: a file that moves has gone from one name and come to another."""
    if event.type == "overflow":
        raise RpcError(Code.RESOURCE_EXHAUSTED, "changes came faster than they were taken, and some are lost; watch again and list the directory")
    told = [(_TYPES[event.type], event.path)]
    if event.to is not None:
        told.append((_TYPES["create"], event.to))
    return [await _event(inside, kind, path, top, entries=entries) for kind, path in told if beneath(path, top)]


def beneath(path: str, top: str) -> bool:
    """Whether it is this directory, or in it."""
    return path == top or path.startswith(top.rstrip("/") + "/")


async def _event(inside: Inside, kind: str, path: str, top: str, *, entries: bool) -> Message:
    shown: Message = {"name": posixpath.relpath(path, top), "type": kind}
    if entries and kind not in (_TYPES["remove"], _TYPES["rename"]):
        try:
            shown["entry"] = (await described(inside, await inside.files.stat(at(path))))[0]
        except (errors.FileNotFound, errors.NotADirectory):
            pass  # gone again
    return shown
