"""The key that secrets are encrypted with: a file in the home. A key management service would take its place as another `control.ports.KeyRing`."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from corral.errors import SetupError

VERSION = b"\x01"
KEY_BYTES = 32
NONCE_BYTES = 12


class FileKeyRing:
    """AES-256-GCM (NIST SP 800-38D) with one key. The file is made when the first value is sealed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cipher: AESGCM | None = None

    async def seal(self, value: bytes, about: bytes) -> bytes:
        """Encrypt. `about` is not kept, and must be the same to open it again: one value can't be put in another's place."""
        cipher = self._cipher or self._open(self._read() or self._make())
        nonce = secrets.token_bytes(NONCE_BYTES)
        return VERSION + nonce + cipher.encrypt(nonce, value, about)

    async def unseal(self, sealed: bytes, about: bytes) -> bytes:
        """Decrypt. Raises `SetupError` when this key is not the one, or what was sealed has been changed."""
        key = b"" if self._cipher else self._read()
        if key is None:
            raise SetupError(
                f"{self._path} is missing, and secrets are encrypted with it", hint="put it back from a backup, or delete the secrets and create them anew"
            )
        cipher = self._cipher or self._open(key)
        nonce, text = sealed[1 : 1 + NONCE_BYTES], sealed[1 + NONCE_BYTES :]
        try:
            if sealed[:1] != VERSION:
                raise InvalidTag
            return cipher.decrypt(nonce, text, about)
        except (InvalidTag, ValueError):
            raise SetupError(
                f"a secret does not open with {self._path}", hint="put the key back that it was made with, or give the secret its value anew"
            ) from None

    def _open(self, key: bytes) -> AESGCM:
        self._cipher = AESGCM(key)
        return self._cipher

    def _read(self) -> bytes | None:
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
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = self._path.with_name(f".{self._path.name}.new")
        fresh.unlink(missing_ok=True)
        key = secrets.token_bytes(KEY_BYTES)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(key)
            file.flush()
            os.fsync(descriptor)
        fresh.rename(self._path)
        directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        return key
