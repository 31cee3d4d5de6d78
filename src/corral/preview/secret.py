"""What preview tokens are derived from: a file in the home, made at the first start."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

SIZE = 32


def kept(path: Path) -> bytes:
    """Its bytes. When it is lost, all tokens, links and cookies are others from then on."""
    try:
        if len(found := path.read_bytes()) == SIZE:
            return found
    except FileNotFoundError:
        pass
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = secrets.token_bytes(SIZE)
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(made)
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(path)
    return made
