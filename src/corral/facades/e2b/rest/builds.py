"""Building templates as E2B's clients do: ask for a build, send the files it takes, start it, ask how far it is."""

from __future__ import annotations

import hashlib
import re
import secrets
import tempfile
import uuid
import zlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import IO, Any

from pydantic import Field
from starlette.responses import Response

from corral.api.body import pieces
from corral.control.buildlog import Progress
from corral.control.roles import Actor, Permission
from corral.facades.e2b.body import Body
from corral.facades.e2b.refusal import Refused
from corral.facades.e2b.rest.call import Call, told
from corral.facades.e2b.rest.recipe import CPU, DISK, MEMORY, Recipe, Template, names_of, recipe
from corral.schema.image import BuildCreate, BuildLog, BuildState, Definition, Run, SetUser

REMEMBERED = 1000
"""Builds and uploads."""
PAGE = 100
_LEVELS = ("debug", "info", "warn", "error")
_LATEST = 1 << 52
_LARGEST = 16 << 30
_PIECE = 1 << 20
_NO_USER = re.compile(r"no user (\S+) in the sandbox's /etc/passwd")
_NOTHING = Recipe(Definition.model_validate({"source": {"kind": "scratch"}, "steps": []}))
_STATES = {BuildState.RUNNING: "building", BuildState.READY: "ready", BuildState.FAILED: "error"}


class NewTemplate(Body):
    """POST /v3/templates."""

    name: str | None = None
    alias: str | None = None
    tags: list[str] | None = None
    cpu_count: int | None = Field(default=None, ge=1)
    memory_mb: int | None = Field(default=None, ge=64)
    min_free_disk_mb: int | None = Field(default=None, alias="minFreeDiskMb", ge=0)


@dataclass
class Build:
    """One that was asked for; `progress` when it was started."""

    project: str
    template: str
    tags: list[str]
    size: Mapping[str, int | None]
    progress: Progress | None = None
    asked: Recipe | None = None


class Builds:
    """Those asked of this server. After a restart clients ask anew, and what is built by then is found."""

    def __init__(self) -> None:
        self._builds: OrderedDict[str, Build] = OrderedDict()
        self._uploads: OrderedDict[tuple[str, str], str] = OrderedDict()

    async def request(self, call: Call) -> Response:
        call.actor.require(Permission.USE)
        wanted = await call.body(NewTemplate)
        name, tags = names_of(wanted.name or wanted.alias or "", wanted.tags or [], call.actor.project)
        id = str(uuid.uuid4())
        size = {CPU: wanted.cpu_count, MEMORY: wanted.memory_mb, DISK: wanted.min_free_disk_mb}
        self._builds[id] = Build(call.actor.project, name, tags, size)
        if len(self._builds) > REMEMBERED:
            self._builds.popitem(last=False)
        shown = {"templateID": name, "buildID": id, "public": False, "names": [name], "aliases": [name], "tags": tags}
        return told(shown, 202)

    async def files(self, call: Call) -> Response:
        """Whether files are here; if not, where to send them."""
        call.actor.require(Permission.USE)
        digest = call.part("hash")
        there = self._uploads.get((call.actor.project, digest))
        present = there is not None and call.services.node.library.uploads.has(call.actor.project, there)
        place = secrets.token_urlsafe(24)
        self._uploads[place, ""] = f"{call.actor.project}\0{digest}"
        self._bound()
        return told({"present": present, "url": str(call.request.base_url) + f"templates/uploads/{place}"}, 201)

    async def upload(self, call: Call) -> Response:
        """The files, as a tar archive, packed or not. The address is the permission."""
        known = self._uploads.get((call.part("place"), ""))
        if known is None:
            raise Refused(403, "this address for an upload is unknown; ask for another")
        project, _, hash = known.partition("\0")
        room = call.services.node.library.room
        room.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=room) as spool:
            found, size = hashlib.sha256(), 0
            async for piece in _plain(pieces(call.request)):
                size += len(piece)
                if size > _LARGEST:
                    raise Refused(413, f"files of a step may have {_LARGEST >> 30} GiB together")
                found.update(piece)
                spool.write(piece)
            spool.seek(0)
            await call.services.node.library.uploads.add(project, found.hexdigest(), _read(spool))
        self._uploads[project, hash] = found.hexdigest()
        self._bound()
        return Response(status_code=200)

    async def start(self, call: Call) -> Response:
        call.actor.require(Permission.USE)
        build = self._find(call)
        wanted = await call.body(Template)
        project = call.actor.project

        def upload(hash: str) -> str:
            digest = self._uploads.get((project, hash))
            if digest is None:
                raise Refused(400, f"the files {hash[:80]} were not sent")
            return digest

        def is_here(ref: str) -> bool:
            return call.services.templates.image(project, ref) is not None

        asked = recipe(wanted, is_here=is_here, upload=upload, size=build.size, project=project)
        native = BuildCreate.model_validate({"definition": asked.definition, "force": wanted.force, "template": build.template, "tag": build.tags[0]})
        build.asked = asked
        password = None if asked.password is None else asked.password.get_secret_value()
        build.progress = await call.services.builds.start(call.actor, native, password=password)
        if len(build.tags) > 1:
            call.services.sandboxes.later(_tag(call, call.actor, build, build.progress))
        return Response(status_code=202)

    async def status(self, call: Call) -> Response:
        """How far it is, and a hundred lines of its log from an offset on, of those of a level at least."""
        call.actor.require(Permission.LOOK)
        build = self._find(call)
        shown: dict[str, Any] = {"templateID": build.template, "buildID": call.part("build"), "logs": [], "logEntries": [], "status": "waiting"}
        if build.progress is None:
            return told(shown)
        now = build.progress.show()
        offset, limit = call.number("logsOffset", 0, most=1 << 31), call.number("limit", PAGE, most=PAGE)
        entries = _entries(call, build, build.progress.lines())
        shown |= {
            "status": _STATES[now.state],
            "logEntries": entries[offset : offset + limit],
            "logs": [one["message"] for one in entries[offset : offset + limit]],
        }
        if now.error is not None:
            asked = build.asked or _NOTHING
            shown["reason"] = {"message": _worded(now.error.message, asked.definition), "step": asked.place(now.error.step), "logEntries": []}
        return told(shown)

    async def logs(self, call: Call) -> Response:
        """A hundred lines of its log, from a time in milliseconds on; backward: up to it, the newest first."""
        call.actor.require(Permission.LOOK)
        build = self._find(call)
        backward = call.query("direction") == "backward"
        cursor = call.number("cursor", _LATEST if backward else 0, most=_LATEST)
        lines = [] if build.progress is None else build.progress.lines()
        lines = [line for line in lines if (line.at.timestamp() * 1000 <= cursor if backward else line.at.timestamp() * 1000 >= cursor)]
        entries = _entries(call, build, lines)
        if backward:
            entries.reverse()
        return told({"logs": entries[: call.number("limit", PAGE, most=PAGE)]})

    def _find(self, call: Call) -> Build:
        build = self._builds.get(call.part("build"))
        if build is None or build.project != call.actor.project:
            raise Refused(404, f"build {call.part('build')[:80]} not found")
        return build

    def _bound(self) -> None:
        while len(self._uploads) > REMEMBERED:
            self._uploads.popitem(last=False)


async def _tag(call: Call, actor: Actor, build: Build, progress: Progress) -> None:
    """The further tags, when it is built."""
    async for _ in progress.follow(1 << 62):
        pass
    image = progress.show().image
    if image is not None:
        for tag in build.tags[1:]:
            await call.services.templates.set(actor, build.template, tag, image)


def _worded(message: str, asked: Definition) -> str:
    """As E2B says it, where clients look for its words: when a command is to run as a user who is not there."""
    if (missing := _NO_USER.match(message)) is None:
        return message
    user = None
    for step in asked.steps:
        if isinstance(step, SetUser):
            user = step.user
        elif isinstance(step, Run) and user == missing[1]:
            return f"failed to run command '{step.command}': command failed: unauthenticated: invalid username: '{user}'"
    return message


def _entries(call: Call, build: Build, lines: Iterable[BuildLog]) -> list[dict[str, Any]]:
    """Those of the level that is asked for, or above. Raises `Refused`."""
    level = call.query("level") or "debug"
    if level not in _LEVELS:
        raise Refused(400, f"level: {level[:40]!r} is none of {', '.join(_LEVELS)}")
    asked = build.asked or _NOTHING
    entries = [_entry(line, asked.place(line.step)) for line in lines]
    return [entry for entry in entries if _LEVELS.index(entry["level"]) >= _LEVELS.index(level)]


def _entry(line: BuildLog, place: str) -> dict[str, Any]:
    level = "debug" if line.stream in ("stdout", "stderr") else "info"
    return {"timestamp": line.at.isoformat().replace("+00:00", "Z"), "message": line.text, "level": level, "step": place}


async def _plain(content: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Unpacked, if it is gzip."""
    first = await anext(content, b"")
    if not first.startswith(b"\x1f\x8b"):
        yield first
        async for piece in content:
            yield piece
        return
    unzip, rest = zlib.decompressobj(wbits=31), first
    while True:
        while rest:
            try:
                yield unzip.decompress(rest, _PIECE)
            except zlib.error:
                raise Refused(400, "the archive is not gzip, though it begins like it") from None
            rest = unzip.unconsumed_tail
        rest = await anext(content, b"")
        if not rest:
            return


async def _read(spool: IO[bytes]) -> AsyncIterator[bytes]:
    while piece := spool.read(_PIECE):
        yield piece
