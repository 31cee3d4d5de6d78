"""/volumecontent of E2B: the files of a volume, for who has its token and no sandbox with it."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, TypeVar

from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from corral.api.body import pieces
from corral.facades.e2b.body import Body
from corral.facades.e2b.refusal import Refused
from corral.facades.e2b.rest.call import Call, Endpoint, told
from corral.facades.e2b.rest.shown import instant
from corral.node.volume_files import Owner, VolumeEntry, VolumeFiles
from corral.threads import in_thread

_PIECE = 256 << 10
_DEEPEST = 100
_NOTHING = "the volume has no such file at this path; links are not followed"
_MOST_ID = (1 << 32) - 2
_KINDS: dict[Callable[[int], bool], str] = {stat.S_ISREG: "file", stat.S_ISDIR: "directory", stat.S_ISLNK: "symlink"}

T = TypeVar("T")


class Metadata(Body):
    """PATCH …/path."""

    uid: int | None = None
    gid: int | None = None
    mode: int | None = None


async def info(call: Call) -> Response:
    return told(_shown(await _with(call, lambda files: files.info(_path(call)))))


async def change(call: Call) -> Response:
    _opened(call)
    wanted = await call.body(Metadata)
    owner = Owner(_id("uid", wanted.uid), _id("gid", wanted.gid), _id("mode", wanted.mode))
    return told(_shown(await _with(call, lambda files: files.change(_path(call), owner))))


async def remove(call: Call) -> Response:
    await _with(call, lambda files: files.remove(_path(call)))
    return Response(status_code=204)


async def listing(call: Call) -> Response:
    depth = call.number("depth", 1, most=_DEEPEST) or 1
    try:
        found = await _with(call, lambda files: files.list(_path(call), depth))
    except OverflowError as error:
        raise Refused(400, str(error)) from None
    return told([_shown(entry) for entry in found])


async def make_directory(call: Call) -> Response:
    owner, force = _owner(call), _flag(call, "force")
    return told(_shown(await _with(call, lambda files: files.make_directory(_path(call), owner, parents=force is True))), 201)


async def download(call: Call) -> Response:
    """The bytes of a file, while others may write it."""
    id, path = _opened(call), _path(call)
    async with AsyncExitStack() as stack:
        files = await _asked(stack.enter_async_context(call.services.node.volumes.opened(id)))
        file = await _asked(in_thread(files.open, path))
        stack.callback(os.close, file)
        return _Bytes(file, stack.pop_all())


async def upload(call: Call) -> Response:
    """A file, whole or not at all. `force`: make the directories it is in; false: refuse to write over one."""
    id, path, owner, force = _opened(call), _path(call), _owner(call), _flag(call, "force")
    async with call.services.node.volumes.opened(id) as files:
        file = await _asked(in_thread(files.new, path, parents=force is True, overwrite=force is not False))
        try:
            async for piece in pieces(call.request):
                call.services.meter.uploaded.inc(len(piece))
                await _asked(in_thread(file.write, piece))
        except BaseException:
            await in_thread(file.discard)
            raise
        await _asked(in_thread(file.keep, owner))
        return told(_shown(await _asked(in_thread(files.info, path))), 201)


class _Bytes(Response):
    """A file that is open, and what is to be closed when it is sent or nobody wants it any more."""

    def __init__(self, file: int, stack: AsyncExitStack) -> None:
        super().__init__()
        self._file = file
        self._stack = stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._stack:
            await StreamingResponse(self._content(), media_type="application/octet-stream")(scope, receive, send)

    async def _content(self) -> AsyncIterator[bytes]:
        while data := await in_thread(os.read, self._file, _PIECE):
            yield data


async def _with(call: Call, doing: Callable[[VolumeFiles], T]) -> T:
    async with call.services.node.volumes.opened(_opened(call)) as files:
        return await _asked(in_thread(doing, files))


async def _asked(doing: Awaitable[T]) -> T:
    """What the system says, as an answer. Raises `Refused`."""
    try:
        return await doing
    except FileExistsError:
        raise Refused(409, "there is such a file already") from None
    except PermissionError:
        raise Refused(400, "owner and mode of a symbolic link can't be set") from None
    except FileNotFoundError:
        raise Refused(404, _NOTHING) from None
    except (IsADirectoryError, ValueError):
        raise Refused(400, "the path is that of a directory, or none") from None
    except OSError as error:
        match error.errno:
            case errno.ENOTDIR | errno.ELOOP | errno.EXDEV:
                raise Refused(404, _NOTHING) from None
            case errno.ENOSPC | errno.EDQUOT:
                raise Refused(507, "the volume is full") from None
            case errno.ENAMETOOLONG | errno.EINVAL:
                raise Refused(400, f"the path is none: {error.strerror}") from None
            case _:
                raise


def _opened(call: Call) -> str:
    """The volume of the path, if the token opens it. Raises `Refused`."""
    id = call.part("volume")
    scheme, _, token = call.request.headers.get("authorization", "").partition(" ")
    if call.services.volumes.find(id) is None or scheme.lower() != "bearer" or not call.tokens.matches(token.strip(), "volume", id):
        raise Refused(401, "the volume's token (Authorization: Bearer) is missing or wrong, or there is no such volume")
    return id


def _path(call: Call) -> str:
    path = call.query("path")
    if path is None or "\0" in path:
        raise Refused(400, "path: which file is meant must be said")
    return path


def _owner(call: Call) -> Owner:
    return Owner(*(_id(name, call.number(name, -1, most=_MOST_ID) if call.query(name) is not None else None) for name in ("uid", "gid", "mode")))


def _id(name: str, given: int | None) -> int | None:
    if given is not None and not 0 <= given <= (0o7777 if name == "mode" else _MOST_ID):
        raise Refused(400, f"{name}: {given} is none")
    return given


def _flag(call: Call, name: str) -> bool | None:
    match call.query(name):
        case None:
            return None
        case "true" | "True" | "1":
            return True
        case "false" | "False" | "0":
            return False
        case other:
            raise Refused(400, f"{name}: {other[:40]!r} is neither true nor false")


def _shown(entry: VolumeEntry) -> dict[str, Any]:
    found = entry.stat
    shown = {
        "name": entry.path.rpartition("/")[2] or "/",
        "type": next((word for is_one, word in _KINDS.items() if is_one(found.st_mode)), "unknown"),
        "path": f"/{entry.path}",
        "size": found.st_size,
        "mode": stat.S_IMODE(found.st_mode),
        "uid": found.st_uid,
        "gid": found.st_gid,
        "atime": instant(found.st_atime),
        "mtime": instant(found.st_mtime),
        "ctime": instant(found.st_ctime),
    }
    return shown if entry.target is None else {**shown, "target": entry.target}


ROUTES: tuple[tuple[str, str, Endpoint], ...] = (
    ("GET", "/volumecontent/{volume}/path", info),
    ("PATCH", "/volumecontent/{volume}/path", change),
    ("DELETE", "/volumecontent/{volume}/path", remove),
    ("GET", "/volumecontent/{volume}/dir", listing),
    ("POST", "/volumecontent/{volume}/dir", make_directory),
    ("GET", "/volumecontent/{volume}/file", download),
    ("PUT", "/volumecontent/{volume}/file", upload),
)
