"""What a sandbox of a snapshot with memory is, whatever was asked for: what its guest believes to have is in its memory."""

from __future__ import annotations

from corral.errors import InvalidArgument
from corral.node.interface import Warm
from corral.schema.sandbox import SandboxCreate


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
