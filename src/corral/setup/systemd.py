"""The unit file of `corral setup --systemd`. systemd is never needed."""

from __future__ import annotations

import sys
from pathlib import Path

from corral.errors import SetupError
from corral.places import Places

UNIT = "corral.service"
DIRECTORY = Path("/etc/systemd/system")

_TEXT = """\
[Unit]
Description=Corral, a sandbox cloud on this machine
After=network.target local-fs.target

[Service]
Type=exec
ExecStart={program} up
Environment=CORRAL_HOME={home}
Restart=always
RestartSec=1
# A new server adopts the sandboxes of the old one, so only the server itself is ended.
KillMode=process
LimitNOFILE=1048576
TasksMax=infinity
# The server makes control groups of its own at the top of the hierarchy.
Delegate=yes

[Install]
WantedBy=multi-user.target
"""


def unit_text(places: Places) -> str:
    return _TEXT.format(program=Path(sys.executable).parent / "corral", home=places.home)


def write_unit(places: Places, directory: Path = DIRECTORY) -> Path:
    """Write the unit file (not started: that is the caller's choice)."""
    if not directory.is_dir():
        raise SetupError(f"{directory} is missing: this machine is not run by systemd", hint="start the server with `corral up --detach`")
    path = directory / UNIT
    path.write_text(unit_text(places))
    return path
