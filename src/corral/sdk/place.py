"""Paths inside a sandbox, as callers give them and as the API wants them; modes and bodies likewise. No I/O."""

from __future__ import annotations

import os
from base64 import b64encode
from pathlib import PurePath

from corral.errors import InvalidArgument, Unsupported

Path = str | bytes | PurePath
"""Absolute, or relative to the sandbox's workdir. Bytes for names that are not UTF-8 (or text as `os.fsdecode` gives it)."""


def at(path: Path) -> dict[str, str]:
    """`path`, or `path_b64` when it is not UTF-8: fields of a body or of a query."""
    raw = os.fsencode(path)
    if not raw or b"\0" in raw:
        raise InvalidArgument(f"{path!r} is no path")
    try:
        return {"path": raw.decode()}
    except UnicodeDecodeError:
        return {"path_b64": b64encode(raw).decode()}


def plain(path: Path) -> str:
    """For requests that take UTF-8 only."""
    match at(path):
        case {"path": text}:
            return text
        case _:
            raise Unsupported(f"{path!r}: this operation takes names in UTF-8 only", hint="run mv or cp in the sandbox")
