"""`corral bench`: what this machine does, through the real client and the running server, beside the raw floor measured in the same run."""

from __future__ import annotations

from corral.bench.main import main

__all__ = ["main"]
