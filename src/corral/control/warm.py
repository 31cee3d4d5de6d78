"""What a sandbox of a snapshot with memory is, whatever was asked for: what its guest believes to have is in its memory."""

from __future__ import annotations

import hashlib
import json

from corral.control.record import BUILD
from corral.errors import InvalidArgument
from corral.node.interface import ImageSpec, Warm
from corral.schema.sandbox import SandboxCreate

SHAPE = {"cpu", "memory", "pids", "sudo"}
"""What a guest believes of itself and has in its memory."""


def fitting(wanted: SandboxCreate, warm: Warm) -> SandboxCreate:
    """The same with at least the source's memory and with its number of processes. Raises `InvalidArgument` for another `sudo` than the source's."""
    if wanted.sudo is not warm.sudo:
        may = "may" if warm.sudo else "may not"
        raise InvalidArgument(
            f"sudo: in the memory of this snapshot the user {may} become root",
            hint=f"create it with sudo={str(warm.sudo).lower()}, or from a snapshot without memory",
            details={"field": "sudo"},
        )
    return wanted.model_copy(update={"memory": max(wanted.memory, warm.memory), "pids": warm.pids})


def shape(wanted: SandboxCreate) -> str:
    """A word for its shape: a memory is for sandboxes of the same."""
    return digest(json.dumps(wanted.model_dump(include=SHAPE), sort_keys=True).encode())


def plain(image: ImageSpec, wanted: SandboxCreate) -> bool:
    """Nothing is asked for that a program finds out when it starts: variables, its user and directory."""
    kept = wanted.user in (None, image.user) and wanted.workdir in (None, image.workdir)
    return kept and not wanted.env and not wanted.secrets and BUILD not in wanted.tags


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
