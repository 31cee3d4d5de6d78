"""Memory and disk: how much there is for sandboxes."""

from __future__ import annotations

import shutil
from pathlib import Path

from corral.setup.check import Finding, ill, well
from corral.setup.machine import Machine

MEMORY = 1024
"""MiB available at least: a few sandboxes beside the server."""
DISK = 6144
"""MiB free at least: the image `base` takes about 1 GB unpacked, and a sandbox may write 4 GB."""


def probe_memory(machine: Machine) -> Finding:
    values = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    total, free = (int(values[name].split()[0]) // 1024 for name in ("MemTotal", "MemAvailable"))
    if free < MEMORY:
        return ill(
            f"{free} of {total} MiB of memory are available", mend=f"end other programs, or use a machine with more: at least {MEMORY} MiB should be free"
        )
    return well(f"{free} of {total} MiB available")


def probe_disk(machine: Machine) -> Finding:
    place = next(path for path in (machine.places.home, *machine.places.home.parents) if path.is_dir())
    free = shutil.disk_usage(place).free >> 20
    if free < DISK:
        return ill(f"{free} MiB are free in {place}", mend=f"make room, or put CORRAL_HOME on a disk with {DISK} MiB free")
    return well(f"{free} MiB free in {place}")
