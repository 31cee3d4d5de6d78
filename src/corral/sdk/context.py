"""Local files that a build takes, as deterministic tar streams named by their digests. Nothing is written to disk: what is uploaded is packed a second time."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from corral.errors import FileNotFound
from corral.patterns import Ignore
from corral.sdk.tree import PIECE

_BLOCK = 512


@dataclass(frozen=True)
class LocalFiles:
    """A directory, or a file by itself. `ignore`: lines as in a .dockerignore."""

    path: Path
    ignore: tuple[str, ...] = ()

    @property
    def is_directory(self) -> bool:
        """Raises `FileNotFound`."""
        if not self.path.exists():
            raise FileNotFound(f"there is no {self.path}", hint="paths of a build are those of this machine")
        return self.path.is_dir()

    def pack(self) -> Iterator[bytes]:
        """A tar stream: names in order, owners left out, times in whole seconds."""
        if self.is_directory:
            yield from _directory(self.path, "", Ignore(self.ignore))
        else:
            yield from _one(self.path, self.path.name, self.path.stat())
        yield bytes(2 * _BLOCK)

    def digest(self) -> str:
        """SHA-256 of the stream, in hexadecimal digits."""
        found = hashlib.sha256()
        for piece in self.pack():
            found.update(piece)
        return found.hexdigest()


@dataclass(frozen=True)
class LocalArchive:
    """A file that is uploaded as it is."""

    path: Path

    def pack(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            while piece := file.read(PIECE):
                yield piece

    def digest(self) -> str:
        try:
            with self.path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            raise FileNotFound(f"there is no {self.path}", hint="paths of a build are those of this machine") from None


def ignore_file(context: Path, dockerfile: Path) -> tuple[str, ...]:
    """The lines of `<Dockerfile>.dockerignore`, else of the context's `.dockerignore`."""
    for path in (dockerfile.with_name(dockerfile.name + ".dockerignore"), context / ".dockerignore"):
        if path.is_file():
            return tuple(path.read_text().splitlines())
    return ()


def _directory(directory: Path, prefix: str, ignore: Ignore) -> Iterator[bytes]:
    with os.scandir(directory) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        name = prefix + entry.name
        ignored = ignore.ignores(name)
        if entry.is_dir(follow_symlinks=False):
            if not ignored:
                yield _header(name, tarfile.DIRTYPE, entry.stat(follow_symlinks=False))
            if not ignored or ignore.has_exceptions:
                yield from _directory(Path(entry.path), name + "/", ignore)
        elif not ignored and (entry.is_symlink() or entry.is_file()):
            yield from _one(Path(entry.path), name, entry.stat(follow_symlinks=False))


def _one(path: Path, name: str, status: os.stat_result) -> Iterator[bytes]:
    if stat.S_ISLNK(status.st_mode):
        yield _header(name, tarfile.SYMTYPE, status, link=str(path.readlink()))
        return
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        yield _header(name, tarfile.REGTYPE, status, size=status.st_size)
        yield from _content(file, status.st_size)


def _header(name: str, kind: bytes, status: os.stat_result, *, size: int = 0, link: str = "") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.mtime, info.size, info.linkname = kind, stat.S_IMODE(status.st_mode), int(status.st_mtime), size, link
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _content(file: io.BufferedReader, size: int) -> Iterator[bytes]:
    """Exactly `size` bytes; of a file that changes meanwhile the digest is another one, which the server notices."""
    left = size
    while left:
        piece = file.read(min(PIECE, left)) or bytes(min(PIECE, left))
        left -= len(piece)
        yield piece
    yield bytes(-size % _BLOCK)


def join(lines: Sequence[str] | str | None) -> tuple[str, ...]:
    """One line or several."""
    return () if lines is None else (lines,) if isinstance(lines, str) else tuple(lines)
