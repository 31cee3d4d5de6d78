"""Encryption at rest: the directories of everything that sandboxes wrote are encrypted ones (fscrypt), and the kernel has their key only while it is needed.

open    policies → may it be? → key unsealed and given to the kernel → is it theirs? → directories without a policy get one
close   key taken back, again until nothing has a file open

A directory says itself that it is encrypted and by which key, so nothing else needs to remember it. The pool's image is made in one of them: what a file was made in decides, not where it is moved.
After a crash the kernel still has the key: sandboxes go on, and the next server takes it as it is.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from corral import spawn
from corral.errors import SetupError
from corral.node import mounts, syscalls
from corral.places import Places
from corral.threads import in_thread

log = structlog.get_logger(__name__)

_PATIENCE = 10.0
"""Seconds that `close` waits for the last users of files."""
_COPYING = 1800.0
"""Seconds for the images of `corral setup`."""
_ASIDE = ".new-"


class DiskKey(Protocol):
    """Where the key is kept. `load` raises `SetupError` when it can't be had; `make` is called once in a home's life."""

    async def load(self) -> bytes: ...
    async def make(self) -> bytes: ...


@dataclass(frozen=True)
class Obstacle:
    """Why nothing can be encrypted here, and what to do about it."""

    why: str
    mend: str


class AtRest:
    """Encryption at rest of one home. `wanted`: encrypt a home that is new."""

    def __init__(self, places: Places, key: DiskKey, *, wanted: bool) -> None:
        self._places = places
        self._key = key
        self._wanted = wanted
        self._identifier: bytes | None = None
        self._given = False
        """Whether the kernel has the key from us, and not from a server before."""

    @property
    def on(self) -> bool:
        """Whether this home is encrypted, and open."""
        return self._identifier is not None

    async def open(self) -> None:
        """Have everything readable; before anything of the home's contents is touched. A home that is not encrypted and needn't be is left as it is.

        Raises `SetupError`, with nothing changed, when it can't be encrypted, or when its key is missing or another.
        """
        try:
            await self._open()
        except OSError as error:
            await self.give_up()
            raise SetupError(f"{self._places.home} can't be encrypted: {error}", hint="see `dmesg`, and `corral doctor`") from error
        except BaseException:
            await self.give_up()
            raise

    async def _open(self) -> None:
        places = self._places
        identifier = await in_thread(identifier_of, places)
        if identifier is None and not self._wanted:
            return
        await in_thread(_refuse_elsewhere, places)
        if identifier is None:
            await in_thread(_refuse, places)
            self._give(await self._key.make(), None)
        elif not await in_thread(is_open, places, identifier):
            self._give(await self._key.load(), identifier)
        else:
            self._identifier = identifier
        assert self._identifier is not None
        await in_thread(_furnish, places, self._identifier)
        log.info("disks_are_encrypted", home=str(places.home), key=self._identifier.hex())

    def _give(self, key: bytes, expected: bytes | None) -> None:
        # Before the kernel has it: taking it back would take it from the home that it belongs to.
        if expected not in (None, _identify(key)):
            raise SetupError(f"{self._places.sealed_disk_key} has the key of another home", hint="put this home's own back from a backup; nothing was changed")
        with _opened(self._places.home) as home:
            self._identifier, self._given = syscalls.add_encryption_key(home, key), True

    async def give_up(self) -> None:
        """After a start that failed: close again what was opened here. A key that the kernel had before is left to those who use it."""
        if self._given:
            await self.close()
        self._identifier = None

    async def close(self) -> None:
        """Take the key back once nothing needs it any more. What still has a file open then keeps that one, which is said."""
        if self._identifier is None:
            return
        deadline = asyncio.get_running_loop().time() + _PATIENCE
        while await in_thread(_take_back, self._places, self._identifier):
            if asyncio.get_running_loop().time() > deadline:
                log.warning("something still uses encrypted files; they can be read until it ends", home=str(self._places.home))
                break
            await asyncio.sleep(0.05)
        self._identifier, self._given = None, False


def _identify(key: bytes) -> bytes:
    """The kernel's name for a key: 16 bytes that HKDF-SHA512 makes of it (fs/crypto/fscrypt_private.h, HKDF_CONTEXT_KEY_IDENTIFIER)."""
    return HKDF(hashes.SHA512(), length=16, salt=None, info=b"fscrypt\0\x01").derive(key)


def identifier_of(places: Places) -> bytes | None:
    """Of the key that a home is encrypted with. Raises `SetupError` when parts of it have different ones."""
    found = {identifier for identifier in _policies(places).values() if identifier is not None}
    if len(found) > 1:
        raise SetupError(f"directories of {places.home} are encrypted with different keys", hint="put those of one home together again; nothing was changed")
    return next(iter(found), None)


def is_open(places: Places, identifier: bytes) -> bool:
    """Whether the kernel has the key."""
    with _opened(places.home) as home:
        return syscalls.has_encryption_key(home, identifier)


def refuse_closed(places: Places) -> None:
    """For who needs a home's contents and is no server. Raises `SetupError` when they are encrypted and the kernel does not have the key."""
    identifier = identifier_of(places)
    if identifier is not None and not is_open(places, identifier):
        raise SetupError(f"{places.home} is encrypted, and its key is not in use", hint="start its server first (`corral up`)")


def obstacle(directory: Path) -> Obstacle | None:
    """What keeps directories there from being encrypted, if anything. Looks at the nearest one that exists."""
    place = next(path for path in (directory, *directory.parents) if path.is_dir())
    try:
        identifier = _policy(place)
    except OSError as error:
        mount = _mount_of(place)
        if error.errno == errno.EOPNOTSUPP and mount.fstype == "ext4" and Path("/sys/fs/ext4/features/encryption").exists():
            return Obstacle(
                f"the ext4 that {place} is on was not told to encrypt",
                f"run `tune2fs -O encrypt {mount.source}` (it may be mounted, and its blocks must be of {os.sysconf('SC_PAGE_SIZE')} bytes)",
            )
        return Obstacle(f"the {mount.fstype} that {place} is on can't encrypt directories with this kernel", "put the home on an ext4, or on a LUKS volume")
    if identifier is not None:
        return Obstacle(f"{place} is in an encrypted directory already", "leave out --encrypt: all that is made there is encrypted by whoever has its key")
    return None


def _refuse(places: Places) -> None:
    """Where a home can't be made an encrypted one."""
    if (found := obstacle(places.home)) is not None:
        raise SetupError(f"{places.home} can't be encrypted: {found.why}", hint=found.mend)
    # Images are what `corral setup` has made before there was a server.
    used = [path for path in places.contents if path != places.layers and path.is_dir() and (path.is_mount() or any(path.iterdir()))]
    if places.pool_image.exists() or used:
        raise SetupError(
            f"{places.home} has sandboxes already, and they are not encrypted: what is written can't be encrypted where it is",
            hint="choose another home for it with --home; `corral image export` and `corral image import` take images and snapshots along",
        )


def _refuse_elsewhere(places: Places) -> None:
    """Where a part of the home is on another file system, nothing that the kernel is told here would encrypt it."""
    for directory in places.contents:
        if directory.is_symlink() or (directory.is_mount() and not (directory == places.pool and places.pool_image.exists())):
            raise SetupError(
                f"{directory} is somewhere else, and can't be encrypted with the rest of {places.home}", hint="have it be a directory of the home's own"
            )


def _furnish(places: Places, identifier: bytes) -> None:
    """Make every directory of contents an encrypted one that is none yet. Killed in between, it is done by the next."""
    for directory in places.contents:
        shutil.rmtree(directory.with_name(f"{_ASIDE}{directory.name}"), ignore_errors=True)
    known = _policies(places)
    for directory in places.contents:
        if known.get(directory) is None and not directory.is_mount():
            if directory.is_dir() and any(directory.iterdir()):
                _move_in(directory, identifier)
            else:
                _encrypt(directory, identifier)
    if places.pool_image.exists():
        with _opened(places.pool_image) as image:
            if syscalls.encryption_policy(image) != identifier:
                raise SetupError(
                    f"{places.pool_image} is not encrypted, and the rest of its home is", hint="put this home's own back from a backup; nothing was changed"
                )


def _encrypt(directory: Path, identifier: bytes) -> None:
    directory.mkdir(mode=0o700, exist_ok=True)
    with _opened(directory) as descriptor:
        syscalls.set_encryption_policy(descriptor, identifier)


def _move_in(directory: Path, identifier: bytes) -> None:
    """Have what is in a directory in an encrypted one instead, in one step. Deleted files stay on the medium until they are written over."""
    log.info("copying_into_an_encrypted_directory", directory=str(directory))
    aside = directory.with_name(f"{_ASIDE}{directory.name}")
    _encrypt(aside, identifier)
    spawn.run(["cp", "-a", f"{directory}/.", str(aside)], timeout=_COPYING).check()
    with _opened(aside) as descriptor:
        syscalls.syncfs(descriptor)
    syscalls.exchange(aside, directory)
    shutil.rmtree(aside)


def _take_back(places: Places, identifier: bytes) -> bool:
    """Whether files are still in use."""
    with _opened(places.home) as home:
        try:
            return syscalls.remove_encryption_key(home, identifier)
        except OSError as error:
            if error.errno != errno.ENOKEY:
                raise
            return False


def _policies(places: Places) -> Mapping[Path, bytes | None]:
    """Keys of the directories of contents that are here. Where the pool is mounted, its directory can't be asked: there is another file system."""
    try:
        if _policy(places.home) is not None:  # somebody else's: the home lies in an encrypted directory
            return {}
    except OSError:
        return {}
    return {directory: None if directory.is_mount() else _policy(directory, elsewhere=True) for directory in places.contents if directory.exists()}


def _policy(directory: Path, *, elsewhere: bool = False) -> bytes | None:
    """`elsewhere`: it may be a link to a file system that can't encrypt; then it has none."""
    with _opened(directory) as descriptor:
        try:
            return syscalls.encryption_policy(descriptor)
        except OSError as error:
            if elsewhere and error.errno in (errno.ENOTTY, errno.EOPNOTSUPP):
                return None
            raise


def _mount_of(place: Path) -> mounts.Mount:
    real = place.resolve()
    return max((mount for mount in mounts.table() if mount.target in (real, *real.parents)), key=lambda mount: (len(mount.target.parts), mount.id))


@contextmanager
def _opened(path: Path) -> Generator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
