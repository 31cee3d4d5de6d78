"""What encrypts small things that must not be read where they rest: secrets, and the key of the disk. By default with a key in a file; a program may give it instead.

A key management service takes its place as such a program, or as another `control.ports.KeyRing`.
"""

from __future__ import annotations

import base64
import binascii
import os
import secrets
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from corral import spawn
from corral.errors import SetupError

VERSION = b"\x01"
KEY_BYTES = 32
NONCE_BYTES = 12
_HEX_DIGITS = 2 * KEY_BYTES
_PATIENCE = 60.0
"""Seconds that a program may take to give the key: it may ask another machine."""


@dataclass(frozen=True)
class Guarded:
    """What a key encrypts, in the words of its errors."""

    things: str
    thing: str
    when_gone: str
    when_wrong: str


SECRETS = Guarded(
    "secrets are",
    "a secret",
    when_gone="put it back from a backup, or delete the secrets and create them anew",
    when_wrong="put the key back that it was made with, or give the secret its value anew",
)
DISK = Guarded(
    "what sandboxes wrote is",
    "this home",
    when_gone="put it back from a backup, or name where it is with --disk-key-file or --disk-key-command; nobody can read the disks without it",
    when_wrong="give the key that it was encrypted with (--disk-key-file or --disk-key-command); nothing was changed",
)


class _KeyRing(ABC):
    """AES-256-GCM (NIST SP 800-38D) with one key."""

    def __init__(self, source: str, guarded: Guarded) -> None:
        self._source = source
        self._guarded = guarded
        self._cipher: AESGCM | None = None

    @abstractmethod
    async def _find(self) -> bytes | None:
        """Its `KEY_BYTES` bytes; None when there are none."""

    def _make(self) -> bytes | None:
        """New ones, where there may be."""
        return None

    async def seal(self, value: bytes, about: bytes) -> bytes:
        """Encrypt. `about` is not kept, and must be the same to open it again: one value can't be put in another's place."""
        cipher = await self._ready(make=True)
        nonce = secrets.token_bytes(NONCE_BYTES)
        return VERSION + nonce + cipher.encrypt(nonce, value, about)

    async def unseal(self, sealed: bytes, about: bytes) -> bytes:
        """Decrypt. Raises `SetupError` when this key is not the one, or what was sealed has been changed."""
        cipher = await self._ready(make=False)
        nonce, text = sealed[1 : 1 + NONCE_BYTES], sealed[1 + NONCE_BYTES :]
        try:
            if sealed[:1] != VERSION:
                raise InvalidTag
            return cipher.decrypt(nonce, text, about)
        except (InvalidTag, ValueError):
            raise SetupError(f"{self._guarded.thing} does not open with {self._source}", hint=self._guarded.when_wrong) from None

    async def _ready(self, *, make: bool) -> AESGCM:
        if self._cipher is None:
            key = await self._find() or (self._make() if make else None)
            if key is None:
                raise SetupError(f"{self._source} is missing, and {self._guarded.things} encrypted with it", hint=self._guarded.when_gone)
            self._cipher = AESGCM(key)
        return self._cipher


class FileKeyRing(_KeyRing):
    """With the key in a file, which is made when the first value is sealed."""

    def __init__(self, path: Path, guarded: Guarded = SECRETS) -> None:
        super().__init__(str(path), guarded)
        self._path = path

    async def _find(self) -> bytes | None:
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        with os.fdopen(descriptor, "rb") as file:
            if os.fstat(descriptor).st_mode & 0o077:
                raise SetupError(f"{self._path} can be read by others", hint=f"chmod 600 {self._path}")
            key = file.read(KEY_BYTES + 1)
        if len(key) != KEY_BYTES:
            raise SetupError(f"{self._path} is not a key of {KEY_BYTES} bytes", hint="put it back from a backup")
        return key

    def _make(self) -> bytes:
        """Whole and on the disk before anything is encrypted with it."""
        key = secrets.token_bytes(KEY_BYTES)
        write_safely(self._path, key)
        return key


class ProgramKeyRing(_KeyRing):
    """With a key that a program prints: 32 bytes as 64 hexadecimal digits or as base64. It is a command line for /bin/sh; the key is kept in memory only."""

    def __init__(self, command: str, guarded: Guarded) -> None:
        super().__init__(f"the key of `{command}`", guarded)
        self._command = command

    async def _find(self) -> bytes | None:
        # What it printed is told to nobody: errors and logs must not have the key.
        done = await spawn.run_async(["/bin/sh", "-c", self._command], timeout=_PATIENCE)
        if done.code:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise SetupError(
                f"`{self._command}`, which is to print the disk key, ended with {done.code}{': ' + said[-1][:500] if said else ''}",
                hint="see why it fails, then start the server again",
            )
        if (key := _decoded(done.stdout.strip())) is None:
            raise SetupError(
                f"`{self._command}` did not print a key",
                hint=f"have it print {KEY_BYTES} bytes as {_HEX_DIGITS} hexadecimal digits or as base64, and nothing else",
            )
        return key


def write_safely(path: Path, content: bytes) -> None:
    """Readable by its owner only, in place of what was there, and on the disk when this returns."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    fresh.rename(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _decoded(text: bytes) -> bytes | None:
    try:
        key = binascii.unhexlify(text) if len(text) == _HEX_DIGITS else base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return key if len(key) == KEY_BYTES else None
