"""Where the guest agent's program is. The build hook compiled it into the package (see hatch_build.py)."""

from __future__ import annotations

import platform
from pathlib import Path

from corral.errors import SetupError

_FAMILIES = {"x86_64": "amd64", "aarch64": "arm64"}


def agent_binary() -> Path:
    """The static program that becomes init of every sandbox on this machine. Raises `SetupError` when the package was built without it."""
    machine = platform.machine()
    family = _FAMILIES.get(machine)
    if family is None:
        raise SetupError(f"Corral has no guest agent for {machine}", hint="use a machine of the family x86_64 or aarch64")
    path = Path(__file__).parent / "_agent" / f"agent-{family}"
    if not path.is_file():
        raise SetupError("the guest agent is missing from this installation", hint="run `./corral setup` in the clone, or install the wheel again")
    return path
