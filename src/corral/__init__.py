"""Corral: a sandbox cloud for AI agents on any Linux machine.

    from corral import Sandbox

    with Sandbox.create() as sb:
        print(sb.run("echo hello").stdout)

`corral.aio` has the same names with await. Names are loaded when they are first used, so that `import corral` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from corral.version import __version__

if TYPE_CHECKING:
    from corral import aio, errors
    from corral.errors import CommandFailed, CorralError, DeadlineExceeded
    from corral.sdk._sync.client import Client
    from corral.sdk._sync.files import Files
    from corral.sdk._sync.image import Image
    from corral.sdk._sync.process import Process
    from corral.sdk._sync.sandbox import Sandbox
    from corral.sdk._sync.secret import Secret
    from corral.sdk._sync.snapshot import Snapshot
    from corral.sdk._sync.volume import Volume
    from corral.sdk.egress import Egress
    from corral.sdk.result import Result

__all__ = [
    "Client",
    "CommandFailed",
    "CorralError",
    "DeadlineExceeded",
    "Egress",
    "Files",
    "Image",
    "Process",
    "Result",
    "Sandbox",
    "Secret",
    "Snapshot",
    "Volume",
    "__version__",
    "aio",
    "errors",
]

_PLACES = {
    "Client": "corral.sdk._sync.client",
    "CommandFailed": "corral.errors",
    "CorralError": "corral.errors",
    "DeadlineExceeded": "corral.errors",
    "Egress": "corral.sdk.egress",
    "Files": "corral.sdk._sync.files",
    "Image": "corral.sdk._sync.image",
    "Process": "corral.sdk._sync.process",
    "Result": "corral.sdk.result",
    "Sandbox": "corral.sdk._sync.sandbox",
    "Secret": "corral.sdk._sync.secret",
    "Snapshot": "corral.sdk._sync.snapshot",
    "Volume": "corral.sdk._sync.volume",
}


def __getattr__(name: str) -> object:
    if name in ("aio", "errors"):
        return import_module(f"corral.{name}")
    if name not in _PLACES:
        raise AttributeError(f"module 'corral' has no attribute {name!r}")
    value = getattr(import_module(_PLACES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
