# Generated from sdk/_async/files.py by scripts/async_to_sync.py: edit that, not this.
"""The files of one sandbox."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path as LocalPath
from typing import IO, Any, TypeVar, cast

from pydantic import BaseModel

from corral.errors import InvalidArgument, NotADirectory
from corral.schema import file as schema
from corral.schema.file import Entry, Kind, WatchEvent
from corral.sdk import faults, tree
from corral.sdk._sync import stream
from corral.sdk._sync.transport import Answer, Headers, Transport
from corral.sdk.place import Path, at, plain
from corral.sdk.tree import PIECE

M = TypeVar("M", bound=BaseModel)
Progress = Callable[[int], object]
Content = str | bytes | IO[bytes] | IO[str] | Iterable[bytes] | Iterable[bytes]


class Files:
    """Paths are absolute, or relative to the sandbox's workdir; text, or bytes when a name is not UTF-8.

    Errors are the sandbox's own: `FileNotFound`, `IsADirectory`, `AccessDenied`, `DiskFull`, …, which also are Python's builtin ones.
    """

    def __init__(self, transport: Transport, sandbox: str) -> None:
        self._transport = transport
        self._path = sandbox + "/files"
        self._tree = sandbox + "/tree"

    def read(self, path: Path, *, offset: int = 0, length: int | None = None) -> bytes:
        """A file's bytes, or `length` of them from `offset`."""
        return b"" if length == 0 else (self._open(path, offset, length)).read()

    def read_text(self, path: Path, *, encoding: str = "utf-8", errors: str = "strict") -> str:
        """A file as text."""
        return (self.read(path)).decode(encoding, errors)

    def pieces(self, path: Path, *, offset: int = 0, length: int | None = None) -> Generator[bytes, None]:
        """A file's bytes piece by piece, for what does not fit in memory."""
        answer = self._open(path, offset, length)
        with closing(answer.pieces()) as pieces:
            for piece in pieces:
                yield piece

    def write(
        self,
        path: Path,
        data: Content,
        *,
        mode: int | None = None,
        user: str | None = None,
        parents: bool = True,
        append: bool = False,
        exclusive: bool = False,
    ) -> Entry:
        """Write a file whole, so that nobody sees half of it (or `append` to it; or only if it is not there: `exclusive`).

        `data` is text, bytes, an open file, or an iterator of bytes. `mode` defaults to what it was, else 0o644.
        """
        query = {**at(path), "mode": mode, "user": user, "parents": parents, "append": append or None, "exclusive": exclusive or None}
        if isinstance(data, str):
            data = data.encode()
        if isinstance(data, (bytes, bytearray, memoryview)):
            body = self._transport.call(
                "PUT", self._path, query=query, body=bytes(data), content_type="application/octet-stream", safe=not append and not exclusive
            )
        else:
            length = _length(data)
            answer = self._transport.stream("PUT", self._path, query=query, body=_pieces(data, length), length=length)
            body = answer.read()
        return faults.decode(Entry, body)

    def list(self, path: Path = ".", *, depth: int = 1) -> list[Entry]:
        """The entries of a directory, sorted by name; with `depth` those of directories below it too."""
        entries: list[Entry] = []
        after: str | None = None
        while True:
            page = self._ask("list", schema.ListFiles, schema.Entries, **at(path), depth=depth, after=after)
            entries += page.entries
            if not page.more or not page.entries:
                return entries
            after = page.entries[-1].path

    def stat(self, path: Path) -> Entry:
        """What is there; of a symbolic link the link itself."""
        return self._ask("stat", schema.At, Entry, **at(path))

    def exists(self, path: Path) -> bool:
        return (self._ask("exists", schema.At, schema.Exists, **at(path))).exists

    def mkdir(self, path: Path, *, mode: int = 0o755, parents: bool = True, user: str | None = None) -> None:
        """Make a directory. With `parents` those above too, and it is no error if it is there."""
        self._do("mkdir", faults.build(schema.Mkdir, **at(path), mode=mode, parents=parents, user=user), safe=parents)

    def remove(self, path: Path, *, recursive: bool = False, missing_ok: bool = False) -> None:
        """Remove a file, an empty directory, or with `recursive` a whole one."""
        self._do("remove", faults.build(schema.Remove, **at(path), recursive=recursive, missing_ok=missing_ok), safe=missing_ok)

    def move(self, source: Path, target: Path, *, overwrite: bool = False) -> None:
        self._do("move", faults.build(schema.Move, source=plain(source), target=plain(target), overwrite=overwrite))

    def copy(self, source: Path, target: Path, *, recursive: bool = True, overwrite: bool = False) -> None:
        """Copy inside the sandbox, keeping modes, owners, times and links."""
        self._do("copy", faults.build(schema.Copy, source=plain(source), target=plain(target), recursive=recursive, overwrite=overwrite), safe=overwrite)

    def chmod(self, path: Path, mode: int, *, recursive: bool = False) -> None:
        self._do("chmod", faults.build(schema.Chmod, **at(path), mode=mode, recursive=recursive), safe=True)

    def chown(self, path: Path, user: str, *, recursive: bool = False) -> None:
        """`user`, `user:group`, or numbers."""
        self._do("chown", faults.build(schema.Chown, **at(path), user=user, recursive=recursive), safe=True)

    def symlink(self, target: Path, path: Path) -> None:
        """Make `path` a symbolic link to `target`."""
        self._do("symlink", faults.build(schema.Symlink, target=plain(target), path=plain(path)))

    def glob(self, pattern: str, *, limit: int = 10_000) -> list[str]:
        """Paths that match; `**` goes through directories."""
        return (self._ask("glob", schema.Glob, schema.Paths, pattern=pattern, limit=limit)).paths

    def watch(self, path: Path = ".", *, recursive: bool = False) -> Generator[WatchEvent, None]:
        """Changes below a directory as they happen, without end. `overflow` says that some were too many to be told."""
        query = {**at(path), "recursive": recursive}
        with closing(stream.follow(self._transport, self._path + "/watch", query)) as parts:
            for part in parts:
                yield faults.decode(WatchEvent, part.data)

    def upload(self, local: str | os.PathLike[str], remote: Path, *, user: str | None = None, on_bytes: Progress | None = None) -> None:
        """Copy a local file, or what is in a local directory, to `remote`. `on_bytes` is told how many bytes each step sent."""
        source = LocalPath(local)
        if source.is_dir():
            body = _counted(_pieces(tree.pack(source)), on_bytes)
            answer = self._transport.stream("PUT", self._tree, query={**at(remote), "user": user}, body=body)
        else:
            with source.open("rb") as file:
                status = os.fstat(file.fileno())
                length = status.st_size if stat.S_ISREG(status.st_mode) else None
                body = _counted(_pieces(file, length), on_bytes)
                query = {**at(remote), "mode": stat.S_IMODE(status.st_mode) & 0o777, "user": user, "parents": True}
                answer = self._transport.stream("PUT", self._path, query=query, body=body, length=length)
        answer.read()

    def download(self, remote: Path, local: str | os.PathLike[str], *, on_bytes: Progress | None = None) -> None:
        """Copy a file, or what is in a directory, of the sandbox to `local`. Nothing is written outside of it, whatever the sandbox sends."""
        target, entry = LocalPath(local), self.stat(remote)
        if entry.type is Kind.SYMLINK:
            entry = entry if self._is_file(remote) else entry.model_copy(update={"type": Kind.DIRECTORY})
        if entry.type is Kind.DIRECTORY:
            answer = self._transport.stream("GET", self._tree, query=at(remote))
            with closing(_counted(answer.pieces(), on_bytes)) as pieces:
                tree.unpack(lambda: next(cast("Iterator[bytes]", pieces), b""), target)
            return
        if target.is_dir():
            target /= entry.name
        partial = target.with_name(target.name + ".part")
        try:
            with partial.open("wb") as file:
                with closing(_counted(self.pieces(remote), on_bytes)) as pieces:
                    for piece in pieces:
                        file.write(piece)
            partial.chmod(entry.mode & 0o777)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    def _is_file(self, path: Path) -> bool:
        """Whether a link leads to something else than a directory."""
        try:
            self._ask("list", schema.ListFiles, schema.Entries, **at(path), limit=1)
        except NotADirectory:
            return True
        return False

    def _open(self, path: Path, offset: int, length: int | None) -> Answer:
        if offset < 0 or (length is not None and length < 0):
            raise InvalidArgument("offset and length can't be negative")
        headers: Headers = []
        if offset or length is not None:
            last = "" if length is None else str(offset + length - 1)
            headers = [(b"range", f"bytes={offset}-{last}".encode())]
        return self._transport.stream("GET", self._path, query=at(path), headers=headers)

    def _ask(self, word: str, request: type[BaseModel], answer: type[M], **fields: Any) -> M:
        body = faults.encode(faults.build(request, **{name: value for name, value in fields.items() if value is not None}))
        return faults.decode(answer, self._transport.call("POST", f"{self._path}/{word}", body=body, safe=True))

    def _do(self, word: str, request: BaseModel, *, safe: bool = False) -> None:
        self._transport.call("POST", f"{self._path}/{word}", body=faults.encode(request), safe=safe)


def _counted(pieces: Generator[bytes, None], on_bytes: Progress | None) -> Generator[bytes, None]:
    with closing(pieces):
        for piece in pieces:
            if on_bytes is not None:
                on_bytes(len(piece))
            yield piece


def _length(data: object) -> int | None:
    """Bytes left in a regular file; None when only reading tells."""
    if not isinstance(data, (io.FileIO, io.BufferedReader, io.BufferedRandom)):
        return None
    status = os.fstat(data.fileno())
    return max(0, status.st_size - data.tell()) if stat.S_ISREG(status.st_mode) else None


def _pieces(data: IO[bytes] | IO[str] | Iterable[bytes] | Iterable[bytes], length: int | None = None) -> Generator[bytes, None]:
    """`length` bounds a file that grows while it is read."""
    read: Callable[[int], str | bytes] | None = getattr(data, "read", None)
    if read is not None:
        while piece := read(PIECE if length is None else min(PIECE, length)):
            raw = piece.encode() if isinstance(piece, str) else piece
            if length is not None:
                length -= len(raw)
            yield raw
        return
    for piece in cast("Iterable[bytes]", data):
        yield piece
