"""The key that the disk is encrypted with: random, kept sealed by the key ring. So the ring's key can be another's business, and can be changed without writing the disk anew."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path

from corral.control.ports import KeyRing
from corral.errors import SetupError
from corral.store.keyring import write_safely

KEY_BYTES = 64
"""What fscrypt recommends for a version 2 policy (Documentation/filesystems/fscrypt.rst)."""
_ABOUT = b"disk key"


class SealedDiskKey:
    """One home's, in a file of it."""

    def __init__(self, path: Path, ring: KeyRing) -> None:
        self._path = path
        self._ring = ring

    async def load(self) -> bytes:
        """Raises `SetupError` when it is gone, or when the ring does not have the key to it."""
        try:
            sealed = await asyncio.to_thread(self._path.read_bytes)
        except FileNotFoundError:
            raise SetupError(
                f"{self._path} is missing, and what sandboxes wrote is encrypted with the key in it",
                hint="put it back from a backup; nobody can read the disks without it",
            ) from None
        return await self._ring.unseal(sealed, _ABOUT)

    async def make(self) -> bytes:
        """A new one, on the disk when this returns. Only for a home of which nothing is encrypted yet."""
        key = secrets.token_bytes(KEY_BYTES)
        await asyncio.to_thread(write_safely, self._path, await self._ring.seal(key, _ABOUT))
        return key
