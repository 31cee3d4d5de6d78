"""Layers put below a directory, entry by entry (image-spec, layer.md).

The entries are a stranger's. Every path is opened as a process would whose root is that directory (openat2, RESOLVE_IN_ROOT): symbolic links lead where they will lead
in a sandbox, and never out. Names with `..`, devices, a second file at a place, and links to nothing are refused; whiteouts take away what is of layers below,
and never what the layer itself brought. Directories keep what they had below, except for what the layer says of them.
"""

from __future__ import annotations

import errno
import io
import os
import posixpath
import shutil
import stat
import tarfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from corral.errors import CorralError, DiskFull, InternalError, InvalidArgument, Unsupported
from corral.images.oci import headers
from corral.images.oci.layer import BLOCK, Readable
from corral.images.oci.tally import Tally
from corral.node import syscalls

WHITEOUT = ".wh."
_AUFS = ".wh..wh."
OPAQUE = ".wh..wh..opq"
_XATTR = "SCHILY.xattr."
_OPEN_DIRECTORIES = 64
_LINKS = 40
_DEEPEST = 256
"""Directories above a file. Whatever walks through an image, here or in a sandbox, goes down by recursion, or holds a descriptor for each."""
_LAST_ID = (1 << 32) - 2
_SPACES = ("user.", "trusted.", "security.", "system.posix_acl_")
_ENTRYS_FAULT = (
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.EEXIST, errno.EMLINK, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY),
    *(errno.E2BIG, errno.ERANGE, errno.EPERM, errno.EXDEV),
)
"""What the system says of entries that can't be: of any other error the image can't be the cause."""
OTHERS = ("security.selinux", "security.ima", "security.evm")
"""Attributes that only mean something on the machine that made them."""


class Unpacker:
    """Puts layers of one image below `root`, a directory that nobody else changes. `tally` is held with those that are put elsewhere."""

    def __init__(self, root: int, tally: Tally) -> None:
        self._root = root
        self._above = len(Path(f"/proc/self/fd/{root}").readlink().parts)
        self._tally = tally
        self._open: OrderedDict[str, int] = OrderedDict()
        self._brought: set[str] = set()
        """Paths of this layer, and directories above them."""
        self._copied: set[str] = set()
        """Files of layers below that are here too, since there is another link to them."""
        self._times: dict[str, int] = {}

    def layer(self, tar: Readable) -> None:
        """One layer, over those before it. Raises `InvalidArgument` for one that is none or is hostile, `TooLarge`, `DiskFull`."""
        self._brought.clear()
        self._copied.clear()
        self._times.clear()
        try:
            with tarfile.open(fileobj=_Stream(tar), mode="r|", bufsize=BLOCK, tarinfo=headers.Header) as archive:
                for info in headers.of(archive):
                    self._entry(archive, info)
            self._set_times()
        except (tarfile.TarError, EOFError, zlib.error, UnicodeError, OverflowError, RecursionError, ValueError) as error:
            if isinstance(error, CorralError):
                raise
            raise InvalidArgument(f"a layer is no tar file: {error or type(error).__name__}"[:500]) from None
        except MemoryError:
            raise InvalidArgument("a layer has a header that takes more memory than there may be") from None
        except OSError as error:
            raise _explained(error) from error
        finally:
            self._close()

    # Entries

    def _entry(self, archive: tarfile.TarFile, info: tarfile.TarInfo) -> None:
        self._tally.entry(self._root, _more(info))
        path = _clean(info.name)
        directory, name = posixpath.split(path)
        if name.startswith(WHITEOUT):
            self._whiteout(directory, name)
            return
        if not path:
            if not info.isdir():
                raise InvalidArgument("the root of a layer is no directory")
            self._dress(self._root, info, existing=True)
            self._times[""] = _time(info)
            return
        if info.isdev() and not info.isfifo():
            if path.startswith("dev/"):
                self._tally.leave_out(f"{_shown('/' + path)} is left out: it is a device, and every sandbox has its own /dev")
                return
            raise InvalidArgument(f"a layer has the device {_shown(path)}", hint="an image is made of files; devices are each sandbox's own, in /dev")
        parent = self._directory(directory)
        self._times.setdefault(directory, os.fstat(parent).st_mtime_ns)
        existing = _look(parent, name)
        if path in self._brought and existing is not None and not (info.isdir() and stat.S_ISDIR(existing.st_mode)):
            raise InvalidArgument(f"a layer has {_shown(path)} twice")
        if existing is not None and not (info.isdir() and stat.S_ISDIR(existing.st_mode)):
            self._remove(parent, name, path)
            parent, existing = self._directory(directory), None
        self._bring(path)
        if info.islnk():
            self._link(parent, name, info)
        elif info.isdir():
            self._make_directory(parent, name, path, info, existing=existing is not None)
        elif info.issym():
            os.symlink(info.linkname, name, dir_fd=parent)
            self._dress_link(parent, name, info)
        elif info.isfifo():
            os.mkfifo(name, 0o600, dir_fd=parent)
            descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            self._dress_and_close(descriptor, info)
        elif info.isreg() and not info.issparse():
            self._write(archive, parent, name, info)
        else:
            raise Unsupported(f"a layer has {_shown(path)}, which is of a kind that layers don't have ({info.type!r})")

    def _write(self, archive: tarfile.TarFile, parent: int, name: str, info: tarfile.TarInfo) -> None:
        self._tally.take(self._root, info.size)
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=parent)
        try:
            if info.size:
                content = archive.extractfile(info)
                assert content is not None
                left = info.size
                while left:
                    piece = content.read(min(BLOCK, left))
                    if not piece:
                        raise EOFError("it ends in the middle of a file")
                    _write_all(descriptor, piece)
                    left -= len(piece)
        except BaseException:
            os.close(descriptor)
            raise
        self._dress_and_close(descriptor, info)

    def _make_directory(self, parent: int, name: str, path: str, info: tarfile.TarInfo, *, existing: bool) -> None:
        if not existing:
            os.mkdir(name, 0o700, dir_fd=parent)
        descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            self._dress(descriptor, info, existing=existing)
        finally:
            os.close(descriptor)
        self._times[path] = _time(info)

    def _link(self, parent: int, name: str, info: tarfile.TarInfo) -> None:
        target = _clean(info.linkname)
        directory, base = posixpath.split(target)
        found = self._find(directory)
        there = None if found is None or not base else _look(found, base)
        if found is None or there is None or stat.S_ISDIR(there.st_mode):
            raise InvalidArgument(f"a layer has a hard link to {_shown(target)}, which is no file")
        if target not in self._brought and target not in self._copied:
            # overlayfs copies a file of a layer below before it links to it.
            self._copied.add(target)
            self._tally.take(self._root, there.st_size)
        os.link(base, name, src_dir_fd=found, dst_dir_fd=parent, follow_symlinks=False)

    def _whiteout(self, directory: str, name: str) -> None:
        try:
            found = self._find(directory)
        except InvalidArgument:
            # It may have become a file in this layer: what was in it is gone already.
            found = None
        if found is not None:
            self._times.setdefault(directory, os.fstat(found).st_mtime_ns)
        if name == OPAQUE:
            if found is not None:
                own = os.dup(found)
                try:
                    self._empty(own, directory)
                finally:
                    os.close(own)
            return
        # What aufs kept its own books with.
        if name.startswith(_AUFS):
            return
        hidden = name.removeprefix(WHITEOUT)
        if hidden in ("", ".", ".."):
            raise InvalidArgument(f"a layer takes away {_shown(posixpath.join(directory, hidden))}")
        path = posixpath.join(directory, hidden)
        if found is not None and path not in self._brought and _look(found, hidden) is not None:
            self._remove(found, hidden, path)

    def _empty(self, directory: int, path: str) -> None:
        """Take away what is in a directory and not of this layer."""
        for name in os.listdir(directory):
            below = posixpath.join(path, name)
            if below not in self._brought:
                self._remove(directory, name, below)
            elif (there := _look(directory, name)) is not None and stat.S_ISDIR(there.st_mode):
                # It may be a directory of below, in which this layer has put something.
                inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
                try:
                    self._empty(inner, below)
                finally:
                    os.close(inner)

    def _remove(self, parent: int, name: str, path: str) -> None:
        """Descriptors that `_find` gave are of no use afterwards."""
        there = _look(parent, name)
        if there is not None and stat.S_ISDIR(there.st_mode):
            if path in self._brought:
                raise InvalidArgument(f"a layer has something at {_shown(path)} and below it")
            shutil.rmtree(name, dir_fd=parent)
            self._forget_below(path)
        else:
            os.unlink(name, dir_fd=parent)
            if there is not None and stat.S_ISLNK(there.st_mode):
                # Directories may be known by a path through it.
                self._close()

    # Directories

    def _directory(self, path: str, depth: int = 0) -> int:
        """A directory, made with those above it when it is missing. The descriptor is good until the next call."""
        found = self._find(path)
        if found is not None:
            return found
        if path.count("/") >= _DEEPEST:
            raise InvalidArgument(f"a layer has {_shown(path)}, which is more than {_DEEPEST} directories deep")
        if depth > _LINKS:
            raise InvalidArgument(f"{_shown(path)} leads in circles")
        above, name = posixpath.split(path)
        parent = self._directory(above, depth)
        try:
            os.mkdir(name, 0o755, dir_fd=parent)
            # Not as the umask would have it.
            os.chmod(name, 0o755, dir_fd=parent)  # noqa: S103
        except FileExistsError:
            # A symbolic link to nothing: what it names is made.
            link = os.readlink(name, dir_fd=parent)
            meant = posixpath.normpath(posixpath.join("/", above, link)).lstrip("/")
            return self._directory(meant, depth + 1)
        found = self._find(path)
        if found is None:
            raise InvalidArgument(f"{_shown(path)} can't be a directory")
        return found

    def _find(self, path: str) -> int | None:
        """A directory that is there."""
        known = self._open.get(path)
        if known is not None:
            self._open.move_to_end(path)
            return known
        if not path:
            return self._root
        try:
            found = syscalls.open_in_root(self._root, os.fsencode(path), os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            return None
        except NotADirectoryError:
            raise InvalidArgument(f"a layer has something below {_shown(path)}, which is no directory") from None
        try:
            self._refuse_deep(found, path)
        except BaseException:
            os.close(found)
            raise
        self._open[path] = found
        if len(self._open) > _OPEN_DIRECTORIES:
            _, oldest = self._open.popitem(last=False)
            os.close(oldest)
        return found

    def _refuse_deep(self, directory: int, path: str) -> None:
        """By where it is, not by its path: links may lead down."""
        try:
            depth = len(Path(f"/proc/self/fd/{directory}").readlink().parts) - self._above
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            depth = _DEEPEST
        if depth >= _DEEPEST:
            raise InvalidArgument(f"a layer has {_shown(path)}, which is more than {_DEEPEST} directories deep")

    def _forget_below(self, path: str) -> None:
        self._close()
        for known in [known for known in self._times if known == path or known.startswith(path + "/")]:
            del self._times[known]

    def _close(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def _bring(self, path: str) -> None:
        while path and path not in self._brought:
            self._brought.add(path)
            path = posixpath.dirname(path)

    def _set_times(self) -> None:
        """Of directories: last, since everything that is put into one changes it."""
        for path, when in self._times.items():
            found = self._find(path)
            if found is not None:
                os.utime(found, ns=(when, when))

    # What a file has besides its content

    def _dress_and_close(self, descriptor: int, info: tarfile.TarInfo) -> None:
        try:
            self._dress(descriptor, info, existing=False)
            when = _time(info)
            os.utime(descriptor, ns=(when, when))
        finally:
            os.close(descriptor)

    def _dress(self, descriptor: int, info: tarfile.TarInfo, *, existing: bool) -> None:
        if existing:
            for name in os.listxattr(descriptor):
                if name not in OTHERS and name.startswith(_SPACES):
                    os.removexattr(descriptor, name)
        uid, gid = _owner(info)
        # In this order: a change of the owner takes set-user-id bits and capabilities away.
        os.fchown(descriptor, uid, gid)
        for name, value in _attributes(info):
            os.setxattr(descriptor, name, value)
        os.fchmod(descriptor, info.mode & 0o7777)

    def _dress_link(self, parent: int, name: str, info: tarfile.TarInfo) -> None:
        uid, gid = _owner(info)
        os.chown(name, uid, gid, dir_fd=parent, follow_symlinks=False)
        for attribute, value in _attributes(info):
            os.setxattr(f"/proc/self/fd/{parent}/{name}", attribute, value, follow_symlinks=False)
        when = _time(info)
        os.utime(name, ns=(when, when), dir_fd=parent, follow_symlinks=False)


class _Stream(io.RawIOBase):
    """What tarfile reads from."""

    def __init__(self, tar: Readable) -> None:
        self._tar = tar

    def read(self, size: int = -1, /) -> bytes:
        return self._tar.read(size)


def _clean(name: str) -> str:
    """A path below the root, without a slash at either end; empty: the root. Raises `InvalidArgument` for one that leads out."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in name:
        raise InvalidArgument(f"a layer has {_shown(name)}, which leads out of it")
    return "/".join(parts)


def _shown(path: str) -> str:
    return ascii(path[:200])


def _more(info: tarfile.TarInfo) -> int:
    """Bytes that an entry takes besides its content."""
    return len(info.linkname) + sum(len(key) + len(text) for key, text in info.pax_headers.items() if key.startswith(_XATTR))


def _look(parent: int, name: str) -> os.stat_result | None:
    with suppress(FileNotFoundError):
        return os.stat(name, dir_fd=parent, follow_symlinks=False)
    return None


def _owner(info: tarfile.TarInfo) -> tuple[int, int]:
    if not (0 <= info.uid <= _LAST_ID and 0 <= info.gid <= _LAST_ID):
        raise InvalidArgument(f"a layer has {_shown(info.name)} of the owner {info.uid}:{info.gid}, which nobody can be")
    return info.uid, info.gid


def _time(info: tarfile.TarInfo) -> int:
    """When it was changed, in nanoseconds; exactly, where the header has fractions."""
    exact = info.pax_headers.get("mtime")
    if exact is None:
        return int(info.mtime) * 1_000_000_000
    whole, _, fraction = exact.partition(".")
    found = int(whole) * 1_000_000_000
    part = int((fraction + "000000000")[:9])
    return found - part if whole.startswith("-") else found + part


def _attributes(info: tarfile.TarInfo) -> Iterator[tuple[str, bytes]]:
    for key, text in info.pax_headers.items():
        if not key.startswith(_XATTR):
            continue
        name = key.removeprefix(_XATTR)
        if name in OTHERS:
            continue
        if name.startswith("trusted.overlay.") or not name.startswith(_SPACES):
            raise InvalidArgument(f"a layer has {_shown(info.name)} with the attribute {_shown(name)}, which no image may have")
        yield name, text.encode("utf-8", "surrogateescape")


def _write_all(descriptor: int, piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[os.write(descriptor, view) :]


def _explained(error: OSError) -> CorralError:
    if isinstance(error, CorralError):
        return error
    where = f" ({ascii(str(error.filename))[:200]})" if error.filename is not None else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull("the node has no room for the image", hint="`corral image prune` makes room")
    if error.errno == errno.EOPNOTSUPP:
        return Unsupported(f"a layer has a file with attributes that the node's disk can't keep{where}", hint="keep Corral's home on ext4, XFS or btrfs")
    if error.errno in _ENTRYS_FAULT:
        return InvalidArgument(f"a layer has an entry that can't be made: {error.strerror}{where}")
    return InternalError(f"the node can't unpack a layer: {error.strerror}{where}", hint="is its disk well?")
