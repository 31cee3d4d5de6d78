"""The machine that is being readied: plain facts, read once."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from corral.places import Places


@dataclass(frozen=True)
class Machine:
    """Facts that nothing here changes. `container` is the word for what we are inside of, if anything."""

    places: Places
    system: str
    version: str
    codename: str
    architecture: str
    kernel: str
    root: bool
    container: str | None


def this_machine(places: Places) -> Machine:
    release = _os_release()
    return Machine(
        places=places,
        system=release.get("ID", "unknown"),
        version=release.get("VERSION_ID", ""),
        codename=release.get("VERSION_CODENAME", ""),
        architecture=platform.machine(),
        kernel=platform.release(),
        root=os.geteuid() == 0,
        container=_container(),
    )


def _os_release() -> dict[str, str]:
    try:
        return platform.freedesktop_os_release()
    except OSError:
        return {}


def _container() -> str | None:
    """As the container's own marks tell: podman's and docker's files, and the variable that systemd asks managers to set for process 1."""
    if Path("/run/.containerenv").exists():
        return "podman"
    if Path("/.dockerenv").exists():
        return "docker"
    try:
        variables = Path("/proc/1/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    return next((line.partition(b"=")[2].decode(errors="replace") for line in variables if line.startswith(b"container=")), None)
