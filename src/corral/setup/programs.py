"""Programs and packages Corral uses besides runsc."""

from __future__ import annotations

import shutil
import socket

from corral.errors import SetupError
from corral.images import builtin
from corral.images.catalog import Catalog
from corral.setup import apt
from corral.setup.check import Finding, Say, ill, well
from corral.setup.machine import Machine

NEEDED = {
    "mkfs.ext4": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "mount": "mount",
    "ip": "iproute2",
    "nft": "nftables",
}
"""Program and the Debian package that has it. Those for images are asked for when an image has to be made."""

IMAGE_TOOL = "mmdebstrap"
"""Makes the image `base`, once."""

LOCAL_NAME = "box.corral.localhost"


def missing() -> dict[str, str]:
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return {program: package for program, package in NEEDED.items() if shutil.which(program) is None and shutil.which(program, path=path) is None}


def probe_programs(machine: Machine) -> Finding:
    lacking = missing()
    if not lacking:
        return well(", ".join(sorted(NEEDED)))
    return ill(
        f"missing: {', '.join(sorted(lacking))}",
        mend=f"run `apt-get install {' '.join(sorted(set(lacking.values())))}`, or install them by this system's package manager",
    )


def install_programs(machine: Machine, say: Say) -> None:
    apt.install(sorted(set(missing().values())), say)


def probe_image_tool(machine: Machine) -> Finding:
    """Only a machine without the image `base` needs it, or one whose `base` was made by an earlier version."""
    catalog = Catalog(machine.places)
    is_old = "base" in builtin.outdated(catalog)
    if not is_old and any(image.spec.name == "base" for image in catalog.list()):
        return well("the image base is made already")
    if shutil.which(IMAGE_TOOL):
        return well(f"{IMAGE_TOOL}; the image base would be made otherwise today: `corral setup` makes it anew" if is_old else IMAGE_TOOL)
    return ill(f"{IMAGE_TOOL} is missing, with which the image base is made", mend=f"run `apt-get install {IMAGE_TOOL}`")


def install_image_tool(machine: Machine, say: Say) -> None:
    apt.install([IMAGE_TOOL], say)


def probe_localhost(machine: Machine) -> Finding:
    """Names below localhost, by which ports of sandboxes will be reached."""
    try:
        addresses = {str(entry[4][0]) for entry in socket.getaddrinfo(LOCAL_NAME, None, type=socket.SOCK_STREAM)}
    except OSError:
        addresses = set[str]()
    if addresses and addresses <= {"127.0.0.1", "::1"}:
        return well("*.localhost leads to this machine")
    return ill("*.localhost does not lead to this machine", mend="run `apt-get install libnss-myhostname`, or use systemd-resolved")


def install_localhost(machine: Machine, say: Say) -> None:
    if not apt.available():
        raise SetupError("libnss-myhostname can't be installed without apt-get", hint="use systemd-resolved")
    apt.install(["libnss-myhostname"], say)
