"""Files of an upload or of another image as a copy takes them: found by pattern, digested for the cache, and put together as one tar file.

The tar file is somebody else's. Names that leave it are refused when it is read, devices too; hard links become the files they stand for.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import posixpath
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol, cast

from corral.errors import CorralError, InvalidArgument, NotFound, TooLarge
from corral.patterns import Ignore, compiled, is_pattern, relative

MOST = 1_000_000
"""Entries of one tree."""
_PIECE = 1 << 20
_BLOCK = 512
_DAMAGED = (tarfile.TarError, EOFError, OSError, ValueError, OverflowError)
"""What reading an archive of strangers raises."""
_LINKS = 40
"""Symbolic links that are followed for one path, as the kernel does."""


@dataclass(frozen=True)
class Entry:
    """One file. `path` is relative, without a slash at its end; the tree's own directory is the empty path. Its bytes are in `file`, from `offset` on."""

    path: str
    kind: Literal["file", "directory", "symlink", "fifo"]
    mode: int
    uid: int
    gid: int
    mtime: float
    size: int = 0
    offset: int = 0
    link: str = ""
    digest: str = ""
    file: Path | None = None


@dataclass(frozen=True)
class Placed:
    """A file and where it goes, relative to the target's directory."""

    name: str
    entry: Entry


class Tree:
    """Files by their paths."""

    def __init__(self, entries: dict[str, Entry]) -> None:
        self.entries = entries
        self._children: dict[str, list[str]] = {}
        for path in sorted(entries):
            if path:
                self._children.setdefault(posixpath.dirname(path), []).append(path)

    @classmethod
    def read(cls, file: Path) -> Tree:
        """The index of a tar file. Raises `InvalidArgument` for what is no tar file, or a hostile one."""
        entries = {"": Entry("", "directory", 0o755, 0, 0, 0.0)}
        try:
            with file.open("rb") as source, _archive(source) as archive, file.open("rb") as content:
                for info in archive:
                    entry = _entry(info, content, entries, file)
                    _make_parents(entry.path, entries)
                    entries[entry.path] = entry
                    if len(entries) > MOST:
                        raise TooLarge(f"there are more than {MOST:,} files in it", hint="leave out what is not needed with .dockerignore")
        except (tarfile.TarError, EOFError, UnicodeError, ValueError, OverflowError) as error:
            if isinstance(error, InvalidArgument):
                raise
            raise InvalidArgument(f"the upload is no tar file: {error}") from None
        return cls(entries)

    def joined(self, other: Tree, prefix: str) -> Tree:
        """With another one's files below a directory."""
        entries = {"": Entry("", "directory", 0o755, 0, 0, 0.0), **self.entries}
        for entry in other.entries.values():
            path = posixpath.join(prefix, entry.path).rstrip("/")
            _make_parents(path, entries)
            entries[path] = replace(entry, path=path)
        return Tree(entries)

    @classmethod
    def of(cls, path: str, entry: Entry) -> Tree:
        """One file."""
        entries = {"": Entry("", "directory", 0o755, 0, 0, 0.0)}
        _make_parents(path, entries)
        entries[path] = replace(entry, path=path)
        return cls(entries)

    def find(self, path: str) -> Entry | None:
        """What is at a path, through symbolic links of directories and of its own; they stay within the tree."""
        seen = 0
        at = ""
        rest = [part for part in path.split("/") if part and part != "."]
        while rest:
            part = rest.pop(0)
            if part == "..":
                at = posixpath.dirname(at)
                continue
            step = f"{at}/{part}" if at else part
            found = self.entries.get(step)
            if found is None:
                return None
            if found.kind == "symlink":
                seen += 1
                if seen > _LINKS:
                    return None
                rest[:0] = [piece for piece in found.link.split("/") if piece and piece != "."]
                at = "" if found.link.startswith("/") else at
                continue
            at = step
        return self.entries[at]

    def below(self, path: str) -> Iterable[Entry]:
        """Everything in a directory, parents first."""
        for child in self._children.get(path, ()):
            yield self.entries[child]
            yield from self.below(child)

    def place(self, sources: Sequence[str], *, name: str | None, exclude: Sequence[str] = (), parents: bool = False) -> list[Placed]:
        """What a copy of these sources puts where. `name`: what a single file is to be called; None: the target is a directory.

        Raises `NotFound` for a source that is nowhere, `InvalidArgument` for several files under one name.
        """
        ignore = Ignore(exclude)
        found = [(source, entry) for source in sources for entry in self._matching(source)]
        if name is not None and (len(found) != 1 or len(sources) != 1 or is_pattern(sources[0])) and any(entry.kind != "directory" for _, entry in found):
            raise InvalidArgument(
                "several files can't be copied to one name", hint="end the target with a slash, to make it a directory", details={"name": name}
            )
        placed: dict[str, Placed] = {}
        for source, entry in found:
            kept = posixpath.dirname(entry.path) if parents else ""
            if entry.kind == "directory":
                prefix = entry.path if parents else ""
                for child in self.below(entry.path):
                    inner = child.path[len(entry.path) :].lstrip("/")
                    if not ignore.ignores(inner):
                        target = posixpath.join(prefix, inner)
                        placed[target] = Placed(target, child)
            elif not ignore.ignores(posixpath.basename(entry.path)):
                target = posixpath.join(kept, name or posixpath.basename(relative(source) if not is_pattern(source) else entry.path))
                placed[target] = Placed(target, entry)
        return [placed[target] for target in sorted(placed)]

    def is_directory(self, sources: Sequence[str]) -> bool:
        """Whether a copy of these sources needs a directory as its target."""
        found = [entry for source in sources for entry in self._matching(source)]
        return len(found) != 1 or found[0].kind == "directory" or is_pattern(sources[0])

    def _behind(self, entry: Entry) -> Entry:
        """What a link leads to, under the name of the link; a link that leads nowhere here is itself."""
        target = self.find(entry.path)
        if target is None or target.kind == "directory":
            return target or entry
        return replace(target, path=entry.path)

    def _matching(self, source: str) -> list[Entry]:
        path = relative(source)
        if is_pattern(path):
            pattern = compiled(path)
            # Of what matches the outermost: a directory brings all below it along.
            paths = [entry for entry in self.entries.values() if entry.path and pattern.fullmatch(entry.path)]
            found = [self._behind(entry) for entry in paths]
        else:
            entry = self.find(path) or self.entries.get(path)
            found = [] if entry is None else [entry]
        if not found:
            raise NotFound(f"{source[:200]!r} is not among the files that can be copied", hint="is it left out by .dockerignore, or misspelt?")
        return sorted(found, key=lambda entry: entry.path)


def digest(placed: Iterable[Placed], *, owners: bool) -> str:
    """Of what a copy puts where. Times of modification don't count; owners only where they are kept."""
    found = hashlib.sha256()
    for one in placed:
        entry = one.entry
        who = (entry.uid, entry.gid) if owners else ()
        found.update(repr((one.name, entry.kind, entry.mode, who, entry.link, entry.digest)).encode("utf-8", "surrogatepass") + b"\n")
    return found.hexdigest()


class Sink(Protocol):
    """What a tar file is written to."""

    def write(self, data: bytes, /) -> object: ...


def write(placed: Sequence[Placed], target: Sink, *, owners: bool, mode: int | None = None, unpack: bool = False) -> None:
    """Put them together as a tar file. `unpack`: those that are tar archives, plain or compressed, become what is in them."""
    for one in placed:
        if one.entry.file is None:
            _put(target, one.name, one.entry, owners=owners, mode=mode)
            continue
        with one.entry.file.open("rb") as source:
            if unpack and _unpacked(source, one, target):
                continue
            _put(target, one.name, one.entry, owners=owners, mode=mode)
            source.seek(one.entry.offset)
            _pour(source, one.entry.size, target)
    target.write(bytes(2 * _BLOCK))


def inline(files: Sequence[tuple[str, str]], target: Sink, *, mode: int | None = None) -> None:
    """Files that were given as text, as a tar file."""
    for name, text in files:
        raw = text.encode("utf-8", "surrogateescape")
        _put(target, name, Entry(name, "file", 0o644, 0, 0, 0.0, size=len(raw)), owners=False, mode=mode)
        _pour(io.BytesIO(raw), len(raw), target)
    target.write(bytes(2 * _BLOCK))


def _put(target: Sink, name: str, entry: Entry, *, owners: bool, mode: int | None) -> None:
    info = tarfile.TarInfo(name)
    info.type = {"file": tarfile.REGTYPE, "directory": tarfile.DIRTYPE, "symlink": tarfile.SYMTYPE, "fifo": tarfile.FIFOTYPE}[entry.kind]
    info.mode = entry.mode if mode is None or entry.kind == "symlink" else mode | (0o111 if entry.kind == "directory" else 0)
    info.mtime, info.size, info.linkname = entry.mtime, entry.size if entry.kind == "file" else 0, entry.link
    if owners:
        info.uid, info.gid = entry.uid, entry.gid
    target.write(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))


def _pour(source: BinaryIO, size: int, target: Sink) -> None:
    left = size
    while left:
        piece = source.read(min(_PIECE, left))
        if not piece:
            raise InvalidArgument("the upload ends in the middle of a file")
        target.write(piece)
        left -= len(piece)
    target.write(bytes(-size % _BLOCK))


def is_archive(entry: Entry) -> bool:
    """Whether it is a tar archive, plain or compressed."""
    if entry.file is None:
        return False
    with entry.file.open("rb") as source:
        try:
            _any_archive(_Part(source, entry.offset, entry.size)).close()
        except _DAMAGED:
            return False
    return True


def _unpacked(source: BinaryIO, one: Placed, target: Sink) -> bool:
    """Whether it was an archive, whose entries were written in its place."""
    directory = posixpath.dirname(one.name)
    within = _Part(source, one.entry.offset, one.entry.size)
    try:
        archive = _any_archive(within)
    except _DAMAGED:
        return False
    with archive:
        try:
            for info in archive:
                name = posixpath.join(directory, clean(info.name))
                if not clean(info.name) or (info.isdev() and not info.isfifo()):
                    continue
                kept = replace_info(info, name, directory)
                target.write(kept.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
                if info.isreg() and (content := archive.extractfile(info)) is not None:
                    _pour(content, info.size, target)  # pyright: ignore[reportArgumentType] - an ExFileObject reads bytes
        except _DAMAGED as error:
            if isinstance(error, CorralError):
                raise
            raise InvalidArgument(f"the archive {one.name!r} is damaged: {error}") from None
    return True


def replace_info(info: tarfile.TarInfo, name: str, directory: str) -> tarfile.TarInfo:
    """A header of an archive under its new name, without what only the archive knows."""
    kept = tarfile.TarInfo(name)
    kept.type, kept.mode, kept.uid, kept.gid, kept.mtime = (tarfile.REGTYPE if info.isreg() else info.type), info.mode, info.uid, info.gid, info.mtime
    kept.size = info.size if info.isreg() else 0
    kept.linkname = posixpath.join(directory, clean(info.linkname)) if info.islnk() else info.linkname
    return kept


class _Careful:
    """A file as tarfile reads it, which takes headers into memory whole, however long they say they are."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if size > _PIECE:
            raise tarfile.ReadError(f"a header of more than {_PIECE >> 20} MiB")
        try:
            return self._file.read(size)
        except (OSError, EOFError):
            raise
        except Exception as error:
            # Each kind of compression has its own.
            raise tarfile.ReadError(str(error)) from error


def _archive(file: BinaryIO) -> tarfile.TarFile:
    """A plain tar file."""
    return tarfile.open(fileobj=cast("BinaryIO", _Careful(file)), mode="r:")


def _any_archive(part: _Part) -> tarfile.TarFile:
    """A tar file that may be compressed, by what it begins with."""
    begin = part.read(6) or b""
    part.seek(0)
    opened: Any = part
    try:
        if begin.startswith(b"\x1f\x8b"):
            opened = gzip.GzipFile(fileobj=opened)
        elif begin.startswith(b"BZh"):
            import bz2

            opened = bz2.BZ2File(opened)
        elif begin.startswith((b"\xfd7zXZ\0", b"\x5d\0\0")):
            import lzma

            opened = lzma.LZMAFile(opened)  # noqa: SIM115 - whoever reads it closes the archive
    except ImportError as error:
        # Not every Python has all of them.
        raise tarfile.CompressionError(str(error)) from None
    return _archive(opened)


class _Part(io.RawIOBase):
    """A part of a file as a file."""

    def __init__(self, source: BinaryIO, start: int, size: int) -> None:
        self._source, self._start, self._size, self._at = source, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride] - the stub's buffer is wider
        self._source.seek(self._start + self._at)
        piece = self._source.read(max(0, min(len(buffer), self._size - self._at)))
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)


def clean(name: str) -> str:
    """The name of an entry, relative and without `.`. Raises `InvalidArgument` for one that leaves its archive."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in name:
        raise InvalidArgument(f"the archive has a file named {name[:200]!r}, which leaves it")
    return "/".join(parts)


def _entry(info: tarfile.TarInfo, content: BinaryIO, known: dict[str, Entry], file: Path) -> Entry:
    path = clean(info.name)
    common = (info.mode & 0o7777, info.uid, info.gid, float(info.mtime))
    if info.isdir():
        return Entry(path, "directory", *common)
    if not path:
        raise InvalidArgument("the root of the archive is no directory")
    if info.issym():
        return Entry(path, "symlink", *common, link=info.linkname)
    if info.isfifo():
        return Entry(path, "fifo", *common)
    if info.islnk():
        meant = known.get(clean(info.linkname))
        if meant is None or meant.kind == "directory":
            raise InvalidArgument(f"the hard link {path[:200]!r} stands for a file that is not before it")
        return replace(meant, path=path)
    if info.isreg() and not info.issparse():
        content.seek(info.offset_data)
        return Entry(path, "file", *common, size=info.size, offset=info.offset_data, digest=_sha256(content, info.size), file=file)
    raise InvalidArgument(f"the archive has {path[:200]!r}, which is neither a file, a directory nor a link", hint="devices and sparse files can't be copied")


def _make_parents(path: str, entries: dict[str, Entry]) -> None:
    at = posixpath.dirname(path)
    missing: list[str] = []
    while at not in entries:
        missing.append(at)
        at = posixpath.dirname(at)
    if path and entries[at].kind != "directory":
        raise InvalidArgument(f"the archive has {path[:200]!r} below what is no directory")
    for one in missing:
        entries[one] = Entry(one, "directory", 0o755, 0, 0, 0.0)


def _sha256(content: BinaryIO, size: int) -> str:
    found = hashlib.sha256()
    left = size
    while left:
        piece = content.read(min(_PIECE, left))
        if not piece:
            raise EOFError("it ends in the middle of a file")
        found.update(piece)
        left -= len(piece)
    return found.hexdigest()
