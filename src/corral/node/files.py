"""The files of a running sandbox, through its agent. Paths are absolute, or relative to the sandbox's workdir; errors are those of `corral.errors`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from corral.errors import CorralError, InvalidArgument, Unavailable
from corral.node.direct import READ_FROM, DirectDownload, open_to_read, open_to_write, pour
from corral.node.entries import entry, place, text
from corral.node.link import Link, RequestFailed
from corral.node.refusals import refusal
from corral.node.start import encoded
from corral.node.transfer import WINDOW, Download, Upload, upload
from corral.node.watch import Watches, Watching
from corral.schema import file as schema
from corral.wire import messages, requests

LONG = 600.0
"""Seconds that work on a whole tree may take."""
_MODE = 0o7777

At = schema.At | str | bytes
T = TypeVar("T")


class Unpacked(NamedTuple):
    """What `tar_in` wrote."""

    files: int
    bytes: int


class Files:
    """New files belong to `user` (the sandbox's default user) unless asked otherwise."""

    def __init__(self, link: Link, next_channel: Callable[[], int], *, user: str | None = None, workdir: str | None = None, root: Path | None = None) -> None:
        """`root`: where the host has the sandbox's root, for big files to go past the guest."""
        self._link = link
        self._next_channel = next_channel
        self._user = user
        self._workdir = workdir
        self._root = root
        self._watches = Watches(link, next_channel)

    # ── single files and directories ──

    async def stat(self, at: At, *, follow: bool = False) -> schema.Entry:
        """What is there; of a symbolic link the link itself, unless `follow`. Raises `FileNotFound`."""
        path = self._place(at)
        return entry((await self._ask(requests.Stat(path=path, follow=follow), messages.HasEntry, path)).entry)

    async def size(self, at: At) -> int:
        """Bytes of the file that is there, also behind symbolic links. Raises `FileNotFound`."""
        return (await self.stat(at, follow=True)).size

    async def exists(self, at: At) -> bool:
        """Whether there is something, behind symbolic links."""
        path = self._place(at)
        try:
            await self._link.request(requests.Stat(path=path, follow=True), messages.HasEntry)
        except RequestFailed as error:
            if error.problem.code in {"ENOENT", "ENOTDIR"}:
                return False
            raise refusal(error.problem, path) from error
        return True

    async def list(self, request: schema.ListFiles) -> schema.Entries:
        """The entries of a directory, sorted by name, down to `depth`. Raises `NotADirectory`."""
        path = self._place(request)
        after = None if request.behind is None else place(request.behind, self._workdir)
        found: list[messages.Entry] = []
        while True:
            wanted = request.limit - len(found)
            page = await self._ask(requests.List(path=path, depth=request.depth, limit=wanted, after=after), messages.Listing, path)
            found += page.entries[:wanted]
            more = page.more or len(page.entries) > wanted
            if not more or not page.entries or len(found) >= request.limit:
                return schema.Entries(entries=[entry(each) for each in found], more=more and bool(page.entries))
            after = page.entries[-1].path

    async def mkdir(self, request: schema.Mkdir) -> None:
        """With `parents` those above too, and it is no error if it is there."""
        path = self._place(request)
        await self._do(requests.Mkdir(path=path, mode=request.mode, parents=request.parents, user=request.user or self._user), path)

    async def remove(self, request: schema.Remove) -> None:
        path = self._place(request)
        await self._do(requests.Remove(path=path, recursive=request.recursive, missing_ok=request.missing_ok), path)

    async def move(self, request: schema.Move) -> None:
        source, target = self._place(request.source), self._place(request.target)
        await self._do(requests.Move(source=source, target=target, overwrite=request.overwrite), source)

    async def copy(self, request: schema.Copy) -> None:
        source, target = self._place(request.source), self._place(request.target)
        await self._do(requests.Copy(source=source, target=target, recursive=request.recursive, overwrite=request.overwrite), source)

    async def chmod(self, request: schema.Chmod) -> None:
        path = self._place(request)
        await self._do(requests.Chmod(path=path, mode=request.mode, recursive=request.recursive), path)

    async def chown(self, request: schema.Chown) -> None:
        path = self._place(request)
        await self._do(requests.Chown(path=path, user=request.user, recursive=request.recursive), path)

    async def symlink(self, request: schema.Symlink) -> None:
        """Make `path` a link to `target`, which is kept as it is given."""
        path, target = self._place(request.path), encoded(request.target)
        await self._do(requests.Symlink(target=target, path=path), path)

    async def glob(self, request: schema.Glob) -> schema.Paths:
        """Paths that match, sorted; `**` goes through directories."""
        pattern = self._place(request.pattern)
        found: list[bytes] = []
        after: bytes | None = None
        while True:
            wanted = request.limit - len(found)
            page = await self._ask(requests.Glob(pattern=pattern, limit=wanted, after=after), messages.Matches, pattern)
            found += page.paths[:wanted]
            more = page.more or len(page.paths) > wanted
            if not more or not page.paths or len(found) >= request.limit:
                return schema.Paths(paths=[text(path) for path in found], more=more and bool(page.paths))
            after = page.paths[-1]

    # ── bytes ──

    async def read(self, at: At, *, offset: int = 0, length: int | None = None) -> tuple[schema.Entry, Download | DirectDownload]:
        """A regular file and its bytes from `offset` on. Close the download (`aclose`) unless it is read to its end."""
        if offset < 0 or (length is not None and length < 0):
            raise InvalidArgument("offset and length can't be negative")
        path = self._place(at)
        if self._root is not None and (length is None or length >= READ_FROM) and (found := await self._read_directly(self._root, path, offset, length)):
            return found
        download = Download(self._link, self._next_channel(), path)
        request = requests.Read(channel=download.channel.number, path=path, offset=offset, length=length, window=WINDOW)
        readable = await download.open(request, messages.Readable)
        return entry(readable.entry), download

    async def _read_directly(self, root: Path, path: bytes, offset: int, length: int | None) -> tuple[schema.Entry, Download | DirectDownload] | None:
        """As `read`, past the guest if the file is big; None when the host does not find it."""
        download = Download(self._link, self._next_channel(), path)
        request = requests.Read(channel=download.channel.number, path=path, offset=offset, length=length, window=WINDOW, direct=READ_FROM)
        try:
            readable = await download.open(request, messages.Readable)
        except CorralError as error:
            if error.details.get("errno") == "EPROTO":
                return None  # an agent of an older Corral that still runs refuses words it does not know
            raise
        if readable.path is None:
            return entry(readable.entry), download
        if (file := open_to_read(root, readable.path)) is None:
            download.close()
            return None
        size = readable.entry.size
        end = size if length is None else min(size, offset + length)
        return entry(readable.entry), DirectDownload(download, file, offset, end)

    async def write(
        self,
        at: At,
        chunks: AsyncIterator[bytes],
        *,
        mode: int | None = None,
        user: str | None = None,
        parents: bool = True,
        append: bool = False,
        exclusive: bool = False,
        in_place: bool = False,
    ) -> schema.Entry:
        """Make these bytes the file, which appears whole or not at all (`append`: add them to it). When `chunks` raises, nothing is left behind.

        `in_place`: the file itself is emptied and written, and half a file is left behind then.
        """
        if mode is not None and not 0 <= mode <= _MODE:
            raise InvalidArgument(f"mode {mode:#o} is not between 0 and 0o7777")
        path = self._place(at)
        number = self._next_channel()

        def request(window: int) -> requests.Write:
            return requests.Write(
                channel=number,
                path=path,
                mode=mode,
                user=user or self._user,
                parents=parents,
                append=append,
                exclusive=exclusive,
                in_place=in_place,
                window=window,
            )

        done = await upload(self._link, number, path, request, chunks, shortcut=None if append or in_place else self._write_directly)
        if done.entry is None:
            raise Unavailable("the guest agent does not say what it wrote", hint="its guest agent may have been tampered with; use another sandbox")
        return entry(done.entry)

    async def _write_directly(self, transfer: Upload, sent: int, chunks: AsyncIterator[bytes]) -> int | None:
        """The rest of an upload past the guest: a `Shortcut`."""
        if self._root is None or (place := await transfer.place()) is None or (file := open_to_write(self._root, place, size=sent)) is None:
            return None
        return await pour(transfer, file, sent, chunks)

    async def tar_out(self, at: At) -> Download:
        """A tree as a POSIX tar stream, names relative to it. Close the download (`aclose`) unless it is read to its end."""
        path = self._place(at)
        download = Download(self._link, self._next_channel(), path)
        await download.open(requests.TarOut(channel=download.channel.number, path=path, window=WINDOW), messages.Done)
        return download

    async def tar_in(self, at: At, chunks: AsyncIterator[bytes], *, user: str | None = None, parents: bool = True) -> Unpacked:
        """Unpack a tar stream below a directory; nothing leaves it, by name or by link. `user` "": files belong to whom the stream says."""
        path = self._place(at)
        number = self._next_channel()

        def request(window: int) -> requests.TarIn:
            return requests.TarIn(channel=number, path=path, user=(self._user if user is None else user) or None, parents=parents, window=window)

        done = await upload(self._link, number, path, request, chunks)
        return Unpacked(done.files, done.bytes)

    def watch(self, at: At, *, recursive: bool = False, after: int | None = None) -> Watching:
        """Positions and changes below a path, as they happen; `after` a position, for a reader that was interrupted.

        `async with` it: errors come when it is entered, and from then on nothing is missed.
        """
        return Watching(self._watches, self._place(at), recursive=recursive, after=after)

    # ──

    def _place(self, at: At) -> bytes:
        return place(at, self._workdir)

    async def _do(self, request: requests.Request, path: bytes) -> None:
        await self._ask(request, messages.Done, path, timeout=LONG)

    async def _ask(self, request: requests.Request, answer: type[T], path: bytes, *, timeout: float = 30.0) -> T:
        try:
            return await self._link.request(request, answer, timeout=timeout)
        except RequestFailed as error:
            raise refusal(error.problem, path) from error
