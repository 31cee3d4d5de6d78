"""The files of a volume as the API shows those of a sandbox: its types, its errors, nothing that blocks the event loop."""

from __future__ import annotations

import base64
import errno
import os
import posixpath
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from typing import TypeVar

from corral.errors import CorralError, DiskFull, FileNotFound, InvalidArgument, NotADirectory
from corral.node import entries
from corral.node.refusals import about_file, shown
from corral.node.start import encoded
from corral.node.volume_files import Owner, VolumeEntry, VolumeFiles
from corral.schema import file as schema
from corral.schema.file import Kind
from corral.schema.volume import VolumeMkdir, VolumeSymlink
from corral.threads import in_thread

T = TypeVar("T")

Opened = Callable[[], AbstractAsyncContextManager[VolumeFiles]]

PIECE = 256 << 10
_MOST_ID = (1 << 32) - 2
_BY_HAND: dict[type[OSError], str] = {IsADirectoryError: "EISDIR", FileExistsError: "EEXIST", FileNotFoundError: "ENOENT"}
_KINDS: tuple[tuple[Callable[[int], bool], Kind], ...] = (
    (stat.S_ISREG, Kind.FILE),
    (stat.S_ISDIR, Kind.DIRECTORY),
    (stat.S_ISLNK, Kind.SYMLINK),
    (stat.S_ISFIFO, Kind.FIFO),
    (stat.S_ISSOCK, Kind.SOCKET),
)


class Reading:
    """The bytes of a file, piece by piece, while others may write it."""

    def __init__(self, file: int, stack: AsyncExitStack, offset: int, length: int | None) -> None:
        self._file = file
        self._stack = stack
        self._offset = offset
        self._left = length

    def __aiter__(self) -> Reading:
        return self

    async def __anext__(self) -> bytes:
        size = PIECE if self._left is None else min(PIECE, self._left)
        data = await in_thread(os.pread, self._file, size, self._offset) if size else b""
        if not data:
            raise StopAsyncIteration
        self._offset += len(data)
        if self._left is not None:
            self._left -= len(data)
        return data

    async def aclose(self) -> None:
        await self._stack.aclose()


class VolumeDoor:
    """`opened` gives the volume's files for a while. Paths begin at its root, whether or not they say so. No link is followed."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened

    async def stat(self, at: schema.At) -> schema.Entry:
        """What is there. Raises `FileNotFound`."""
        path = _path(at)
        return _entry(await self._do(path, lambda files: files.info(path)))

    async def size(self, at: schema.At) -> int:
        """Bytes. Raises `FileNotFound`."""
        return (await self.stat(at)).size

    async def exists(self, at: schema.At) -> bool:
        with suppress(FileNotFound, NotADirectory):
            await self.stat(at)
            return True
        return False

    async def list(self, request: schema.ListFiles) -> schema.Entries:
        """The entries of a directory, by path, down to `depth`. Raises `NotADirectory`."""
        path, after = _path(request), None if request.behind is None else _path(request.behind)
        found, more = await self._do(path, lambda files: files.page(path, request.depth, limit=request.limit, after=after))
        return schema.Entries(entries=[_entry(one) for one in found], more=more)

    async def mkdir(self, request: VolumeMkdir) -> None:
        path, owner = _path(request), _owner(request.user, request.mode)
        await self._do(path, lambda files: files.make_directory(path, owner, parents=request.parents))

    async def remove(self, request: schema.Remove) -> None:
        path = _path(request)
        if not _plain(path):
            raise InvalidArgument("the root of a volume stays as it is", hint="remove what is in it, or delete the volume", details={"field": "path"})
        try:
            await self._do(path, lambda files: files.remove(path, recursive=request.recursive))
        except FileNotFound:
            if not request.missing_ok:
                raise

    async def symlink(self, request: VolumeSymlink) -> None:
        path, target = _path(request), os.fsdecode(encoded(request.target))
        await self._do(path, lambda files: files.symlink(target, path))

    async def read(self, at: schema.At, *, offset: int = 0, length: int | None = None) -> tuple[schema.Entry, Reading]:
        """A file, and its bytes from `offset` on. Raises `FileNotFound`, `IsADirectory`."""
        path = _path(at)
        async with AsyncExitStack() as stack:
            files = await stack.enter_async_context(self._opened())
            file = await _asked(path, in_thread(files.open, path))
            stack.callback(os.close, file)
            found = VolumeEntry(_plain(path), os.fstat(file), None)
            return _entry(found), Reading(file, stack.pop_all(), offset, length)

    async def write(
        self, at: schema.At, chunks: AsyncIterator[bytes], *, mode: int | None = None, user: str | None = None, parents: bool = True, exclusive: bool = False
    ) -> schema.Entry:
        """A file, whole or not at all. Raises `FileExists` for one that is there, if it is to be `exclusive`."""
        path, owner = _path(at), _owner(user, mode)
        async with self._opened() as files:
            file = await _asked(path, in_thread(files.new, path, parents=parents, overwrite=not exclusive))
            try:
                async for piece in chunks:
                    await _asked(path, in_thread(file.write, piece))
            except BaseException:
                await in_thread(file.discard)
                raise
            await _asked(path, in_thread(file.keep, owner))
            return _entry(await _asked(path, in_thread(files.info, path)))

    async def _do(self, path: str, doing: Callable[[VolumeFiles], T]) -> T:
        async with self._opened() as files:
            return await _asked(path, in_thread(doing, files))


async def _asked(path: str, doing: Awaitable[T]) -> T:
    try:
        return await doing
    except CorralError:
        raise
    except OSError as error:
        raise _refusal(path, error) from error


def _refusal(path: str, error: OSError) -> CorralError:
    # Some are raised by hand, and have no number.
    code = next((name for kind, name in _BY_HAND.items() if isinstance(error, kind)), errno.errorcode.get(error.errno or 0, ""))
    raw = os.fsencode(path)
    if code in ("ENOENT", "ELOOP", "EXDEV"):
        hint = "links are not followed here: name what they lead to"
        return FileNotFound(f"`{shown(raw)}` does not exist, or leads through a symbolic link", hint=hint)
    if code == "ENOSPC":
        return DiskFull(f"`{shown(raw)}` can't be written: the volume is full", hint="remove files, or make a larger volume")
    if (told := about_file(code, raw)) is None:
        raise error
    return told


def _path(at: schema.At) -> str:
    return os.fsdecode(entries.place(at, "/"))


def _plain(path: str) -> str:
    return posixpath.normpath(path).strip("/")


def _owner(user: str | None, mode: int | None) -> Owner:
    if user is None:
        return Owner(mode=mode)
    uid, _, gid = user.partition(":")
    owner = Owner(int(uid), int(gid or uid), mode)
    if max(int(uid), int(gid or uid)) > _MOST_ID:
        raise InvalidArgument(f"user: {user} is none", hint="numbers of users and groups have 32 bits", details={"field": "user"})
    return owner


def _entry(found: VolumeEntry) -> schema.Entry:
    raw = os.fsencode(f"/{found.path}")
    path = entries.text(raw)
    return schema.Entry(
        name=path.rpartition("/")[2] or "/",
        path=path,
        path_b64=None if path.encode() == raw else base64.b64encode(raw).decode(),
        type=next((kind for is_one, kind in _KINDS if is_one(found.stat.st_mode)), Kind.DEVICE),
        size=found.stat.st_size,
        mode=stat.S_IMODE(found.stat.st_mode),
        uid=found.stat.st_uid,
        gid=found.stat.st_gid,
        user=None,
        group=None,
        modified_at=entries.moment(found.stat.st_mtime),
        target=None if found.target is None else entries.text(os.fsencode(found.target)),
    )
