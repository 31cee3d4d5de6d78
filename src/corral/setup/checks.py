"""The list: everything a machine must be able to do, each after what it needs. `corral setup` mends along it and `corral doctor` tells along it."""

from __future__ import annotations

from corral.setup import engine, kernel, network, programs, room
from corral.setup.check import Check

CHECKS: tuple[Check, ...] = (
    # What nobody but a person can mend comes first, so that a machine that can't serve is left untouched.
    Check("kernel", kernel.probe_kernel),
    Check("root", kernel.probe_root),
    Check("rights", kernel.probe_rights),
    Check("control groups", kernel.probe_cgroups),
    Check("encryption at rest", kernel.probe_at_rest, needed=False),
    Check("disk", room.probe_disk),
    Check("memory", room.probe_memory, needed=False),
    Check("open files", kernel.probe_open_files, needed=False),
    # What setup can bring.
    Check("programs", programs.probe_programs, repair=programs.install_programs),
    Check("image tools", programs.probe_image_tool, repair=programs.install_image_tool),
    Check("overlay", kernel.probe_overlay, repair=kernel.load_modules),
    Check("loop devices", kernel.probe_loop, repair=kernel.load_modules),
    Check("ext4", kernel.probe_ext4, repair=kernel.load_modules),
    Check("reflinks", kernel.probe_reflink, repair=kernel.load_modules, needed=False),
    Check("network", network.probe_network, repair=kernel.load_modules, needed=False),
    Check("localhost names", programs.probe_localhost, repair=programs.install_localhost, needed=False),
    Check("runsc", engine.probe_engine, repair=engine.install_engine),
)
