"""The one place that makes system calls the standard library does not have. Itself it needs nothing but the standard library.

Each function is one call (or the two or three that are of no use apart), raises `OSError` with the errno and the path, and releases the interpreter
lock while the kernel works. Numbers come from the kernel's headers (include/uapi); those from 424 up are the same on every architecture.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Iterable, Iterator
from enum import IntFlag
from typing import NamedTuple

StrPath = str | os.PathLike[str]

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

_NR_OPEN_TREE = 428
_NR_OPENAT2 = 437
_NR_MOVE_MOUNT = 429
_NR_PROCESS_MADVISE = 440
_NR_MOUNT_SETATTR = 442

_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000


class MountFlag(IntFlag):
    """Flags of mount(2) (linux/mount.h)."""

    NONE = 0
    READ_ONLY = 1
    NOSUID = 2
    NODEV = 4
    NOEXEC = 8
    NOATIME = 1024
    BIND = 4096
    RECURSIVE = 16384
    SILENT = 1 << 15
    PRIVATE = 1 << 18
    SHARED = 1 << 20


class MountAttribute(IntFlag):
    """Attributes of mount_setattr(2): of the mount, not of the file system behind it."""

    NONE = 0
    READ_ONLY = 0x01
    NOSUID = 0x02
    NODEV = 0x04
    NOEXEC = 0x08


class LoopFlag(IntFlag):
    """LO_FLAGS_… (linux/loop.h)."""

    NONE = 0
    READ_ONLY = 1
    AUTOCLEAR = 4
    DIRECT_IO = 16


def _check(result: int, path: StrPath | bytes | None = None) -> int:
    """The one errno helper: a negative result becomes the `OSError` of its errno."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), *(() if path is None else (os.fspath(path),)))
    return result


def _syscall(number: int, *arguments: object, path: StrPath | bytes | None = None) -> int:
    return _check(_libc.syscall(ctypes.c_long(number), *arguments), path)


def _long(value: int) -> ctypes.c_long:
    return ctypes.c_long(value)


# Mounts


def mount(source: StrPath, target: StrPath, fstype: str, *, flags: MountFlag = MountFlag.NONE, data: str = "") -> None:
    """mount(2). `data` are the file system's own options, which must fit one page (4,096 bytes)."""
    result = _libc.mount(os.fsencode(source), os.fsencode(target), fstype.encode() or None, ctypes.c_ulong(flags), data.encode() or None)
    _check(result, target)


def umount(target: StrPath, *, lazy: bool = False) -> None:
    """umount2(2), not following a symbolic link. `lazy`: the mount leaves the tree now and ends with its last user (MNT_DETACH)."""
    umount_nofollow, detach = 8, 2
    _check(_libc.umount2(os.fsencode(target), umount_nofollow | (detach if lazy else 0)), target)


def bind(source: StrPath, target: StrPath, *, recursive: bool = False, read_only: bool = False) -> None:
    """Show `source` (a directory or a file) at `target` too. A read-only bind is read-only before anybody can see it.

    Mount attributes do not propagate to a sandbox that has the mount already, so a bind must never be made read-only afterwards.
    """
    tree = open_tree(source, recursive=recursive)
    try:
        if read_only:
            set_mount_attributes(tree, MountAttribute.READ_ONLY, recursive=recursive)
        move_mount(tree, target)
    finally:
        os.close(tree)


def make_private(target: StrPath) -> None:
    """Have nothing to do with other mounts of the same: a bind of a shared mount begins as one of its group."""
    mount("", target, "", flags=MountFlag.PRIVATE)


def make_shared(target: StrPath) -> None:
    """Let mounts made under `target` propagate to its later copies in other mount namespaces."""
    mount("", target, "", flags=MountFlag.SHARED)


def open_tree(path: StrPath, *, recursive: bool = False) -> int:
    """A detached copy of the mount at `path`, as a descriptor for `move_mount`."""
    clone = 1
    flags = clone | os.O_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    return _syscall(_NR_OPEN_TREE, _long(_AT_FDCWD), os.fsencode(path), ctypes.c_uint(flags), path=path)


def set_mount_attributes(tree: int, attributes: MountAttribute, *, recursive: bool = False) -> None:
    """mount_setattr(2) on a descriptor: adds `attributes`."""
    attr = struct.pack("<QQQQ", attributes, 0, 0, 0)
    flags = _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    _syscall(_NR_MOUNT_SETATTR, _long(tree), b"", ctypes.c_uint(flags), attr, ctypes.c_size_t(len(attr)))


def move_mount(tree: int, target: StrPath) -> None:
    """Attach a detached mount (of `open_tree`) at `target`."""
    from_empty_path = 4
    _syscall(_NR_MOVE_MOUNT, _long(tree), b"", _long(_AT_FDCWD), os.fsencode(target), ctypes.c_uint(from_empty_path), path=target)


# Whole file systems and files

_FICLONE = 0x40049409
_FIFREEZE = 0xC0045877
_FITHAW = 0xC0045878
_FITRIM = 0xC0185879
_EXT4_SHUTDOWN = 0x8004587D


def syncfs(fd: int) -> None:
    """Write out everything of the file system that holds `fd`, and wait for it."""
    _check(_libc.syncfs(fd))


def sync(path: StrPath) -> None:
    """What a file or a directory has is safe, even from a power cut, when this returns."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def freeze(fd: int) -> None:
    """Stop writers of the file system that holds `fd` after writing everything out (FIFREEZE). Always pair with `thaw`."""
    fcntl.ioctl(fd, _FIFREEZE, 0)


def thaw(fd: int) -> None:
    fcntl.ioctl(fd, _FITHAW, 0)


def trim(fd: int) -> int:
    """Give back what the file system that holds `fd` no longer uses (FITRIM); returns the bytes discarded."""
    request = bytearray(struct.pack("<QQQ", 0, 2**64 - 1, 0))
    fcntl.ioctl(fd, _FITRIM, request)
    return struct.unpack_from("<Q", request, 8)[0]


def shut_down_ext4(fd: int) -> None:
    """Make the ext4 that holds `fd` forget what it has not written (EXT4_IOC_SHUTDOWN): it can only be unmounted then, which takes no time any more."""
    without_flushing = 2
    fcntl.ioctl(fd, _EXT4_SHUTDOWN, struct.pack("I", without_flushing))


def reflink(source: int, target: int) -> None:
    """Make the file `target` share all of `source`'s blocks (FICLONE). EOPNOTSUPP, EXDEV or EINVAL: not possible there."""
    fcntl.ioctl(target, _FICLONE, source)


_FS_IOC_FIEMAP = 0xC020660B


class Extent(NamedTuple):
    """A run of a file's data. `shared`: other files have these blocks too."""

    offset: int
    length: int
    shared: bool


def extents(fd: int) -> Iterator[Extent]:
    """The data of a file, in order (FIEMAP, linux/fiemap.h)."""
    is_last, is_shared, header, each, batch = 0x1, 0x2000, 32, 56, 512
    start = 0
    while True:
        request = bytearray(struct.pack("<QQIIII", start, 2**64 - 1 - start, 0, 0, batch, 0)) + bytearray(each * batch)
        fcntl.ioctl(fd, _FS_IOC_FIEMAP, request)
        found = struct.unpack_from("<I", request, 20)[0]
        for number in range(found):
            offset, _, length, _, _, flags = struct.unpack_from("<QQQQQI", request, header + each * number)
            yield Extent(offset, length, bool(flags & is_shared))
            start = offset + length
            if flags & is_last:
                return
        if not found:
            return


# Encrypted directories (linux/fscrypt.h)

_FS_IOC_SET_ENCRYPTION_POLICY = 0x800C6613
_FS_IOC_GET_ENCRYPTION_POLICY_EX = 0xC0096616
_FS_IOC_ADD_ENCRYPTION_KEY = 0xC0506617
_FS_IOC_REMOVE_ENCRYPTION_KEY = 0xC0406618
_FS_IOC_GET_ENCRYPTION_KEY_STATUS = 0xC080661A
_KEY = "<II32s"
"""struct fscrypt_key_specifier."""
_BY_IDENTIFIER = 2


def encryption_policy(fd: int) -> bytes | None:
    """The identifier of the key that a directory or file is encrypted with; None: it is not.

    EOPNOTSUPP: its file system could, but was not told to; ENOTTY: it can't.
    """
    size = 24
    request = bytearray(struct.pack("<Q24s", size, b""))
    try:
        fcntl.ioctl(fd, _FS_IOC_GET_ENCRYPTION_POLICY_EX, request)
    except OSError as error:
        if error.errno == errno.ENODATA:
            return None
        raise
    return bytes(request[16:32])


def set_encryption_policy(directory: int, identifier: bytes) -> None:
    """Have everything that is made in an empty directory, at any depth, be encrypted with a key that `add_encryption_key` gave to its file system.

    Contents by AES-256-XTS, names by AES-256-CBC-CTS padded to 32 bytes, each file with a key of its own (a version 2 policy). ENOTEMPTY: it isn't empty.
    """
    version, contents, names, pad_32 = 2, 1, 4, 3
    fcntl.ioctl(directory, _FS_IOC_SET_ENCRYPTION_POLICY, struct.pack("<BBBB4s16s", version, contents, names, pad_32, b"", identifier))


def add_encryption_key(fd: int, key: bytes) -> bytes:
    """Give a key (64 bytes) to the file system that holds `fd`, until it is removed or the file system unmounted; returns its identifier, a hash of it."""
    request = bytearray(struct.pack(_KEY + "II32s", _BY_IDENTIFIER, 0, b"", len(key), 0, b"") + key)
    fcntl.ioctl(fd, _FS_IOC_ADD_ENCRYPTION_KEY, request)
    return bytes(request[8:24])


def remove_encryption_key(fd: int, identifier: bytes) -> bool:
    """Take the key back: nothing more can be opened with it. Returns whether files are in use that stay readable until they aren't; call again then. ENOKEY: it is not there."""
    files_busy = 0x1
    request = bytearray(struct.pack(_KEY + "I20s", _BY_IDENTIFIER, 0, identifier, 0, b""))
    fcntl.ioctl(fd, _FS_IOC_REMOVE_ENCRYPTION_KEY, request)
    return bool(struct.unpack_from("<I", request, 40)[0] & files_busy)


def has_encryption_key(fd: int, identifier: bytes) -> bool:
    """Whether the file system that holds `fd` has the key, wholly."""
    present = 2
    request = bytearray(struct.pack(_KEY + "24s64s", _BY_IDENTIFIER, 0, identifier, b"", b""))
    fcntl.ioctl(fd, _FS_IOC_GET_ENCRYPTION_KEY_STATUS, request)
    return struct.unpack_from("<I", request, 64)[0] == present


# Loop devices (linux/loop.h)

_LOOP_GET_STATUS64 = 0x4C05
_LOOP_CONFIGURE = 0x4C0A
_LOOP_CTL_GET_FREE = 0x4C82


def loop_get_free(control: int) -> int:
    """The number of a loop device without a file, made when all are taken."""
    return fcntl.ioctl(control, _LOOP_CTL_GET_FREE)


def loop_configure(device: int, backing: int, *, flags: LoopFlag, block_size: int = 0, name: bytes = b"") -> None:
    """Give a loop device its file and flags in one step. EBUSY: somebody else took the device since `loop_get_free`."""
    info = struct.pack("<5Q4I64s64s32s2Q", 0, 0, 0, 0, 0, 0, 0, 0, flags, name[:63], b"", b"", 0, 0)
    fcntl.ioctl(device, _LOOP_CONFIGURE, bytearray(struct.pack("<II", backing, block_size) + info + bytes(64)))


def loop_backing(device: int) -> tuple[int, int]:
    """Device and inode number of the file behind a loop device; ENXIO: it has none."""
    status = bytearray(232)
    fcntl.ioctl(device, _LOOP_GET_STATUS64, status)
    return struct.unpack_from("<QQ", status)


# Names


def exchange(one: StrPath, other: StrPath) -> None:
    """Give two files or directories each other's name in one step (renameat2 RENAME_EXCHANGE)."""
    rename_exchange = 2
    _check(_libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), ctypes.c_uint(rename_exchange)), one)


# Paths that somebody else made


def open_beneath(root: int, path: bytes, flags: int) -> int:
    """openat2(2): open `path` below the directory `root`, through no symbolic link and no mount, wherever its parts lead (linux/openat2.h).

    With O_PATH and O_NOFOLLOW in `flags` a link at its end is opened itself. ENOENT, ENOTDIR, ELOOP or EXDEV: there is no such path.
    """
    no_xdev, no_magiclinks, no_symlinks, beneath = 0x01, 0x02, 0x04, 0x08
    how = struct.pack("<QQQ", flags | os.O_CLOEXEC, 0, no_xdev | no_magiclinks | no_symlinks | beneath)
    return _syscall(_NR_OPENAT2, _long(root), path, how, ctypes.c_size_t(len(how)), path=path)


def open_in_root(root: int, path: bytes, flags: int) -> int:
    """openat2(2): open `path` as a process would whose root directory is `root`: symbolic links and `..` lead nowhere else. Through no magic link and no mount."""
    no_xdev, no_magiclinks, in_root = 0x01, 0x02, 0x10
    how = struct.pack("<QQQ", flags | os.O_CLOEXEC, 0, no_xdev | no_magiclinks | in_root)
    return _syscall(_NR_OPENAT2, _long(root), path, how, ctypes.c_size_t(len(how)), path=path)


# Processes


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that made it ends (PR_SET_PDEATHSIG). A parent that has ended already is not noticed."""
    set_pdeathsig, sigkill = 1, 9
    _check(_libc.prctl(set_pdeathsig, ctypes.c_ulong(sigkill), 0, 0, 0))


def page_out(pidfd: int, ranges: Iterable[tuple[int, int]]) -> int:
    """Reclaim memory of another process (process_madvise MADV_PAGEOUT): `(address, bytes)` ranges; returns the bytes advised."""
    pageout, batch = 21, 1024  # UIO_MAXIOV
    vectors = [struct.pack("@NN", address, length) for address, length in ranges]
    done = 0
    for first in range(0, len(vectors), batch):
        part = vectors[first : first + batch]
        done += _syscall(_NR_PROCESS_MADVISE, _long(pidfd), b"".join(part), ctypes.c_ulong(len(part)), _long(pageout), ctypes.c_uint(0))
    return done


# Namespaces


def unshare_mounts() -> None:
    """Put this process (it must have one thread) into a mount namespace of its own, from which no mount goes back; all of it ends with the process."""
    new_mounts, private = 0x00020000, 1 << 18
    _check(_libc.unshare(new_mounts))
    _check(_libc.mount(None, b"/", None, ctypes.c_ulong(private | MountFlag.RECURSIVE), None))


_CLONE_NEWNET = 0x40000000


def unshare_network() -> None:
    """Put the calling thread into a network namespace of its own, which ends with its last user."""
    _check(_libc.unshare(_CLONE_NEWNET))


def enter_network(namespace: int) -> None:
    """Put the calling thread into another network namespace (a descriptor of it)."""
    _check(_libc.setns(namespace, _CLONE_NEWNET))
