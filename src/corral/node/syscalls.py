"""The one place that makes system calls the standard library does not have. Standard library only: the holder imports it.

Each function is one call (or the two or three that are of no use apart), raises `OSError` with the errno and the path, and releases the interpreter
lock while the kernel works. Numbers come from the kernel's headers (include/uapi); those from 424 up are the same on every architecture.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from collections.abc import Iterable
from enum import IntFlag

StrPath = str | os.PathLike[str]

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

_NR_OPEN_TREE = 428
_NR_MOVE_MOUNT = 429
_NR_FSOPEN = 430
_NR_FSCONFIG = 431
_NR_FSMOUNT = 432
_NR_OPENAT2 = 437
_NR_PIDFD_GETFD = 438
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
    REMOUNT = 32
    NOATIME = 1024
    BIND = 4096
    MOVE = 8192
    RECURSIVE = 16384
    SILENT = 1 << 15
    PRIVATE = 1 << 18
    SLAVE = 1 << 19
    SHARED = 1 << 20


class MountAttribute(IntFlag):
    """Attributes of fsmount(2) and mount_setattr(2): of the mount, not of the file system behind it."""

    NONE = 0
    READ_ONLY = 0x01
    NOSUID = 0x02
    NODEV = 0x04
    NOEXEC = 0x08
    NOATIME = 0x10
    NOSYMFOLLOW = 0x200000


class Resolve(IntFlag):
    """How far openat2(2) may look (linux/openat2.h)."""

    NONE = 0
    NO_XDEV = 0x01
    NO_MAGICLINKS = 0x02
    NO_SYMLINKS = 0x04
    BENEATH = 0x08
    IN_ROOT = 0x10


class Namespace(IntFlag):
    """CLONE_NEW… bits of unshare(2) and setns(2)."""

    MOUNT = 0x00020000
    CGROUP = 0x02000000
    UTS = 0x04000000
    IPC = 0x08000000
    USER = 0x10000000
    PID = 0x20000000
    NETWORK = 0x40000000


class LoopFlag(IntFlag):
    """LO_FLAGS_… (linux/loop.h)."""

    NONE = 0
    READ_ONLY = 1
    AUTOCLEAR = 4
    PARTSCAN = 8
    DIRECT_IO = 16


def _check(result: int, path: StrPath | None = None) -> int:
    """The one errno helper: a negative result becomes the `OSError` of its errno."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), *(() if path is None else (os.fspath(path),)))
    return result


def _syscall(number: int, *arguments: object, path: StrPath | None = None) -> int:
    return _check(_libc.syscall(ctypes.c_long(number), *arguments), path)


def _long(value: int) -> ctypes.c_long:
    return ctypes.c_long(value)


# Mounts


def mount(source: StrPath, target: StrPath, fstype: str, *, flags: MountFlag = MountFlag.NONE, data: str = "") -> None:
    """mount(2). `data` are the file system's own options; with `source` they must fit one page (4,096 bytes)."""
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


def make_shared(target: StrPath) -> None:
    """Let mounts made under `target` propagate to its later copies in other mount namespaces."""
    mount("", target, "", flags=MountFlag.SHARED)


def make_slave(target: StrPath, *, recursive: bool = False) -> None:
    mount("", target, "", flags=MountFlag.SLAVE | (MountFlag.RECURSIVE if recursive else MountFlag.NONE))


def make_private(target: StrPath, *, recursive: bool = False) -> None:
    mount("", target, "", flags=MountFlag.PRIVATE | (MountFlag.RECURSIVE if recursive else MountFlag.NONE))


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
    """Attach a detached mount (of `open_tree` or `fsmount`) at `target`."""
    from_empty_path = 4
    _syscall(_NR_MOVE_MOUNT, _long(tree), b"", _long(_AT_FDCWD), os.fsencode(target), ctypes.c_uint(from_empty_path), path=target)


def fsopen(fstype: str) -> int:
    """A file system context to be configured by `fsconfig_…` and mounted by `fsmount`. Options so given have no common page limit."""
    close_on_exec = 1
    return _syscall(_NR_FSOPEN, fstype.encode(), ctypes.c_uint(close_on_exec))


def fsconfig_string(context: int, key: str, value: StrPath) -> None:
    """Set one option (a value has at most 255 bytes)."""
    set_string = 1
    _syscall(_NR_FSCONFIG, _long(context), ctypes.c_uint(set_string), key.encode(), os.fsencode(value), ctypes.c_int(0), path=value)


def fsconfig_flag(context: int, key: str) -> None:
    set_flag = 0
    _syscall(_NR_FSCONFIG, _long(context), ctypes.c_uint(set_flag), key.encode(), None, ctypes.c_int(0))


def fsconfig_create(context: int) -> None:
    create = 6
    _syscall(_NR_FSCONFIG, _long(context), ctypes.c_uint(create), None, None, ctypes.c_int(0))


def fsmount(context: int, attributes: MountAttribute = MountAttribute.NONE) -> int:
    """The created file system as a detached mount."""
    close_on_exec = 1
    return _syscall(_NR_FSMOUNT, _long(context), ctypes.c_uint(close_on_exec), ctypes.c_uint(attributes))


# Whole file systems and files

_FICLONE = 0x40049409
_FIFREEZE = 0xC0045877
_FITHAW = 0xC0045878
_FITRIM = 0xC0185879
_EXT4_SHUTDOWN = 0x8004587D


def syncfs(fd: int) -> None:
    """Write out everything of the file system that holds `fd`, and wait for it."""
    _check(_libc.syncfs(fd))


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


# Loop devices (linux/loop.h)

_LOOP_CLR_FD = 0x4C01
_LOOP_GET_STATUS64 = 0x4C05
_LOOP_CONFIGURE = 0x4C0A
_LOOP_CTL_ADD = 0x4C80
_LOOP_CTL_GET_FREE = 0x4C82


def loop_get_free(control: int) -> int:
    """The number of a loop device without a file, made when all are taken."""
    return fcntl.ioctl(control, _LOOP_CTL_GET_FREE)


def loop_add(control: int, number: int) -> None:
    """Make loop device `number`; EEXIST when there is one."""
    fcntl.ioctl(control, _LOOP_CTL_ADD, number)


def loop_configure(device: int, backing: int, *, flags: LoopFlag, block_size: int = 0, name: bytes = b"") -> None:
    """Give a loop device its file and flags in one step. EBUSY: somebody else took the device since `loop_get_free`."""
    info = struct.pack("<5Q4I64s64s32s2Q", 0, 0, 0, 0, 0, 0, 0, 0, flags, name[:63], b"", b"", 0, 0)
    fcntl.ioctl(device, _LOOP_CONFIGURE, bytearray(struct.pack("<II", backing, block_size) + info + bytes(64)))


def loop_clear(device: int) -> None:
    fcntl.ioctl(device, _LOOP_CLR_FD, 0)


def loop_backing(device: int) -> tuple[int, int]:
    """Device and inode number of the file behind a loop device; ENXIO: it has none."""
    status = bytearray(232)
    fcntl.ioctl(device, _LOOP_GET_STATUS64, status)
    return struct.unpack_from("<QQ", status)


# Processes


def set_child_subreaper() -> None:
    """Orphaned descendants become children of this process, which can then wait for them (prctl PR_SET_CHILD_SUBREAPER)."""
    _prctl(36, 1)


def set_parent_death_signal(number: int) -> None:
    """Get this signal when the parent thread ends (prctl PR_SET_PDEATHSIG)."""
    _prctl(1, number)


def set_no_new_privileges() -> None:
    _prctl(38, 1)


def _prctl(option: int, value: int) -> None:
    zero = ctypes.c_ulong(0)
    _check(_libc.prctl(ctypes.c_int(option), ctypes.c_ulong(value), zero, zero, zero))


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """A copy of another process' descriptor."""
    return _syscall(_NR_PIDFD_GETFD, _long(pidfd), _long(fd), ctypes.c_uint(0))


def page_out(pidfd: int, ranges: Iterable[tuple[int, int]]) -> int:
    """Reclaim memory of another process (process_madvise MADV_PAGEOUT): `(address, bytes)` ranges; returns the bytes advised."""
    pageout, batch = 21, 1024  # UIO_MAXIOV
    vectors = [struct.pack("@NN", address, length) for address, length in ranges]
    done = 0
    for first in range(0, len(vectors), batch):
        part = vectors[first : first + batch]
        done += _syscall(_NR_PROCESS_MADVISE, _long(pidfd), b"".join(part), ctypes.c_ulong(len(part)), _long(pageout), ctypes.c_uint(0))
    return done


def unshare(namespaces: Namespace) -> None:
    _check(_libc.unshare(ctypes.c_int(namespaces)))


def setns(fd: int, namespaces: Namespace) -> None:
    """Move this thread into the namespace behind `fd` (of /proc/PID/ns, or a pidfd with several bits)."""
    _check(_libc.setns(ctypes.c_int(fd), ctypes.c_int(namespaces)))


def openat2(directory: int, path: StrPath | bytes, *, flags: int, mode: int = 0, resolve: Resolve = Resolve.NONE) -> int:
    """Open a path that somebody else may be changing. With `Resolve.IN_ROOT`, `directory` is the root of everything in it, symbolic links included."""
    how = struct.pack("<QQQ", flags | os.O_CLOEXEC, mode, resolve)
    return _syscall(_NR_OPENAT2, _long(directory), os.fsencode(path), how, ctypes.c_size_t(len(how)), path=os.fsdecode(path))
