"""A sandbox's root file system: the host's overlayfs, image layers below and the sandbox's own disk above.

It is mounted under the root of a sentry that already runs, and appears in it at once (the root is a shared mount). The host only mounts and unmounts it; it never
writes into it while the sandbox lives, since the sentry caches what it has seen.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from corral.errors import PlatformError, Unsupported
from corral.node import ext4, mounts, syscalls
from corral.node.spec import ROOTFS
from corral.node.syscalls import MountFlag
from corral.places import Places

_FLAGS = MountFlag.NODEV | MountFlag.NOSUID | MountFlag.NOATIME
# For the host's sake: a set-user-id program or a device node that a sandbox makes must be nothing to a user of the host. The sentry goes by the mode bits alone.

_FEATURES = "xino=on,index=off,metacopy=off,redirect_dir=nofollow"
# xino: else a file gets another inode number when it is first written, which the sentry's cache takes for another file.
# index, metacopy: a clone of the disk would be refused or half, and some distributions turn them on.
# redirect_dir: renaming a directory of the image is EXDEV, as with Docker; programs copy then. Following such marks would trust the disk's content.

_PAGE = 4096
_MOUNTED = ".mounted"
_mounting_layer = threading.Lock()


def mount_root(member_root: Path, layers: Sequence[Path], writable: Path) -> None:
    """Mount `layers` (from the lowest up: directories, or ext4 images of disks) and the disk `writable` above them at `<member_root>/rootfs`.

    Half a millisecond. Raises `Unsupported` for more layers than overlayfs can be told of, `PlatformError` when a layer is missing or the mount fails.
    """
    directories = [_directory(layer) for layer in layers]
    upper, work = writable / ext4.UPPER, writable / ext4.WORK
    if not (work / "work").exists():
        _dress(upper, directories[-1])
    target = member_root / ROOTFS
    with ExitStack() as open_directories:
        lower = [str(path) for path in reversed(directories)]
        options = _options(lower, upper, work)
        if options is None:
            options = _options([_by_descriptor(path, open_directories) for path in lower], upper, work)
        if options is None:
            raise Unsupported(f"an image can't have {len(layers)} layers", hint="make a snapshot of a sandbox of it as one layer, or build it with fewer steps")
        try:
            syscalls.mount("corral", target, "overlay", flags=_FLAGS, data=options)
        except OSError as error:
            raise PlatformError(f"the root file system can't be mounted at {target}: {error.strerror}", hint="`dmesg` says why") from error


def unmount_root(member_root: Path) -> None:
    """Unmount what `mount_root` mounted; nothing happens if nothing is mounted. Its last user's end is the end of it.

    Writes the disk out, unless that is removed already: seconds, when much was written.
    """
    try:
        syscalls.umount(member_root / ROOTFS, lazy=True)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT):
            raise


def mount_view(target: Path, layers: Sequence[Path]) -> list[Path]:
    """Mount `layers` (from the lowest up) at `target` to be looked at only; returns the directories they are in, in the same order."""
    directories = [_directory(layer) for layer in layers]
    if len(directories) == 1:
        syscalls.bind(directories[0], target, read_only=True)
        return directories
    with ExitStack() as open_directories:
        lower = [_by_descriptor(str(path), open_directories) for path in reversed(directories)]
        flags = _FLAGS | MountFlag.READ_ONLY | MountFlag.NOEXEC
        syscalls.mount("corral", target, "overlay", flags=flags, data=f"lowerdir={':'.join(lower)},{_FEATURES}")
    return directories


def mount_stack(target: Path, layers: Sequence[Path], upper: Path, work: Path) -> None:
    """Mount `layers` (directories, from the lowest up) at `target` to be written on: what changes becomes a further layer in the empty directory `upper`.

    `work`: an empty directory beside it. Raises `OSError`, as where the file system can't hold such a layer.
    """
    _dress(upper, layers[-1])
    with ExitStack() as open_directories:
        lower = [_by_descriptor(str(path), open_directories) for path in reversed(layers)]
        above = (_by_descriptor(str(upper), open_directories), _by_descriptor(str(work), open_directories))
        syscalls.mount("corral", target, "overlay", flags=_FLAGS, data=f"lowerdir={':'.join(lower)},upperdir={above[0]},workdir={above[1]},{_FEATURES}")


def unmount_layers(places: Places) -> None:
    """Unmount layers that are images, when no sandbox uses them any more."""
    for directory in (places.layers, places.snapshots):
        mounts.sweep(directory / _MOUNTED)


def directories(layers: Sequence[Path]) -> list[Path]:
    """Where the files of layers are; those that are images are mounted."""
    return [_directory(layer) for layer in layers]


def mount_layers(layers: Sequence[Path]) -> None:
    """Mount those layers that are images, unless they are: what `mount_root` would do, milliseconds each, at a better time."""
    for layer in layers:
        _directory(layer)


def unmount_layer(layer: Path) -> None:
    """Unmount a layer that is an image; sandboxes that stand on it keep it for themselves."""
    target = layer.parent / _MOUNTED / layer.name
    with _mounting_layer:
        if target.is_mount():
            syscalls.umount(target, lazy=True)
        with suppress(FileNotFoundError):
            target.rmdir()


def _options(lower: Sequence[str], upper: Path, work: Path) -> str | None:
    """What mount(2) is told, if it fits the page there is for it and no path in it would be taken for something else."""
    options = f"lowerdir={':'.join(lower)},upperdir={upper},workdir={work},{_FEATURES}"
    odd = any(character in path for path in (*lower, str(upper), str(work)) for character in ":,\\")
    return None if odd or len(os.fsencode(options)) >= _PAGE else options


def _by_descriptor(path: str, stack: ExitStack) -> str:
    """A short name of a directory, good until the stack is closed: with these some 200 layers fit a page."""
    descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, descriptor)
    return f"/proc/self/fd/{descriptor}"


def _dress(upper: Path, image_root: Path) -> None:
    """The root directory of an overlay has the upper's owner and mode: a new disk gets the image's."""
    wanted, has = image_root.stat(), upper.stat()
    if (wanted.st_uid, wanted.st_gid) != (has.st_uid, has.st_gid):
        os.chown(upper, wanted.st_uid, wanted.st_gid)
    if wanted.st_mode != has.st_mode:
        upper.chmod(stat.S_IMODE(wanted.st_mode))


def _directory(layer: Path) -> Path:
    """Where a layer's files are. An image is mounted by its first user, read-only, and then shared; what counts is what its sandbox wrote."""
    if layer.is_dir():
        return layer
    target = layer.parent / _MOUNTED / layer.name
    with _mounting_layer:
        # Under the lock: what is deleted is unmounted after it is gone, so that no mount outlives it.
        if not layer.exists():
            raise PlatformError(f"the image's layer {layer} is missing", hint="`corral setup` builds missing images again")
        if not target.is_mount():
            target.mkdir(mode=0o700, parents=True, exist_ok=True)
            mounts.lead(target.parent)
            ext4.mount(layer, target, read_only=True)
    return target / ext4.UPPER
