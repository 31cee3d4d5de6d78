"""Access to single sandboxes: the token of one, and addresses of files signed with it. Nothing is stored: tokens follow from the server's key."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
from pathlib import Path
from typing import Literal


class Tokens:
    """`path` keeps the server's key; it is made at the first start."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._secret: bytes | None = None

    @property
    def _key(self) -> bytes:
        if self._secret is None:
            try:
                self._secret = self._path.read_bytes()
            except FileNotFoundError:
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
                self._secret = secrets.token_bytes(32)
                with os.fdopen(descriptor, "wb") as file:
                    file.write(self._secret)
        return self._secret

    def of(self, kind: Literal["envd", "volume", "upload"], id: str) -> str:
        """The token that opens this sandbox (its inside), volume or place for an upload."""
        return hmac.new(self._key, f"{kind}\0{id}".encode(), hashlib.sha256).hexdigest()

    def matches(self, given: str | None, kind: Literal["envd", "volume", "upload"], id: str) -> bool:
        return given is not None and hmac.compare_digest(given.encode(), self.of(kind, id).encode())


def signature(token: str, path: str, operation: Literal["read", "write"], user: str, expires: str | None) -> str:
    """What E2B's clients put behind the address of a file: `expires` in seconds since 1970, as it is written there."""
    signed = f"{path}:{operation}:{user}:{token}" + (f":{expires}" if expires is not None else "")
    return "v1_" + base64.b64encode(hashlib.sha256(signed.encode()).digest()).decode().rstrip("=")
