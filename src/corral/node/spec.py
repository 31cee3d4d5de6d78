"""The OCI spec of a generic pool member: no image, only the agent as init on a tiny root of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

AGENT = "/agent"
"""Where the agent is inside the member's root."""
ROOTFS = "rootfs"
"""The directory of the member's root under which the sandbox's own root is mounted at claim."""
VOLUMES = "vol"
ROOT_DIRECTORIES = (ROOTFS, VOLUMES, "proc", "dev", "sys", "tmp")

CAPABILITIES = tuple(
    f"CAP_{name}"
    for name in (
        # What containers usually give root; all of it is virtual, towards the sandbox kernel only.
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "DAC_READ_SEARCH",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "NET_BIND_SERVICE",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
        # The agent mounts and pivots at claim, sets limits and priorities, and lets users debug their programs.
        "SYS_ADMIN",
        "SYS_NICE",
        "SYS_PTRACE",
        "SYS_RESOURCE",
        # ip, iptables and the like inside the sandbox's own network stack.
        "IPC_LOCK",
        "NET_ADMIN",
    )
)


def member(*, root: Path, volumes: Path, hostname: str) -> dict[str, Any]:
    """The spec of a member whose root is the directory `root` and whose /vol is `volumes`.

    `noNewPrivileges` stays off for the agent: it is root as it is, and where the engine honours setuid programs, users shall have them.
    There is no mount hint on /vol: any would put a hidden overlay on it.
    """
    sets = ("bounding", "effective", "inheritable", "permitted")
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": [AGENT],
            "cwd": "/",
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "capabilities": {name: list(CAPABILITIES) for name in sets},
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 65536, "hard": 1_048_576}],
            "noNewPrivileges": False,
        },
        "root": {"path": str(root), "readonly": False},
        "hostname": hostname,
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs"},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},  # noqa: S108  the member's, not the host's
            {"destination": "/vol", "type": "bind", "source": str(volumes), "options": ["rbind", "rw"]},
        ],
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")]},
    }
