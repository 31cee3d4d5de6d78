# Generated from sdk/_async/files.py by scripts/async_to_sync.py: edit that, not this.
"""The files of one sandbox."""

from __future__ import annotations

import os
import stat
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path as LocalPath
from typing import cast

from corral.errors import NotADirectory
from corral.schema import file as schema
from corral.schema.file import Entry, Kind, WatchEvent
from corral.sdk import faults, tree
from corral.sdk._sync import stream
from corral.sdk._sync.plain_files import Content, PlainFiles, Progress, counted, pieces_of
from corral.sdk._sync.transport import Transport
from corral.sdk.place import Path, at, plain


class Files(PlainFiles):
    """Paths are absolute, or relative to the sandbox's workdir; text, or bytes when a name is not UTF-8.

    Errors are the sandbox's own: `FileNotFound`, `IsADirectory`, `AccessDenied`, `DiskFull`, …, which also are Python's builtin ones.
    """

    def __init__(self, transport: Transport, sandbox: str) -> None:
        super().__init__(transport, sandbox)
        self._tree = sandbox + "/tree"

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
        return self._write(query, data, safe=not append and not exclusive)

    def mkdir(self, path: Path, *, mode: int = 0o755, parents: bool = True, user: str | None = None) -> None:
        """Make a directory. With `parents` those above too, and it is no error if it is there."""
        self._do("mkdir", faults.build(schema.Mkdir, **at(path), mode=mode, parents=parents, user=user), safe=parents)

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
            body = counted(pieces_of(tree.pack(source)), on_bytes)
            answer = self._transport.stream("PUT", self._tree, query={**at(remote), "user": user}, body=body)
        else:
            with source.open("rb") as file:
                status = os.fstat(file.fileno())
                length = status.st_size if stat.S_ISREG(status.st_mode) else None
                body = counted(pieces_of(file, length), on_bytes)
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
            with closing(counted(answer.pieces(), on_bytes)) as pieces:
                tree.unpack(lambda: next(cast("Iterator[bytes]", pieces), b""), target)
            return
        if target.is_dir():
            target /= entry.name
        partial = target.with_name(target.name + ".part")
        try:
            with partial.open("wb") as file:
                with closing(counted(self.pieces(remote), on_bytes)) as pieces:
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
