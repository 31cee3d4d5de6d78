"""`corral trust`: this machine's programs trust the certificates of `corral up --tls`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from corral.cli import options, show

SYSTEM = Path("/usr/local/share/ca-certificates")
"""Where Debian's and Ubuntu's update-ca-certificates takes additional ones from."""


def trust(
    *,
    home: Annotated[Path | None, typer.Option(help="Corral's state [default: $CORRAL_HOME, else /var/lib/corral for root].")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Trust it no longer.")] = False,
    json: options.Json = False,
) -> None:
    """Have this machine trust the previews' certificates: the system's list, and the one of Chromium and Firefox where `certutil` is. Java keeps a list of its own."""
    import os
    import shutil

    from corral import spawn
    from corral.errors import SetupError
    from corral.places import Places, default_home

    places = Places((home or default_home()).absolute())
    authority = places.keys / "edge-ca.pem"
    if not authority.exists():
        raise SetupError(f"{authority} is not there", hint="`corral up --tls` makes it")
    if os.geteuid() != 0 or shutil.which("update-ca-certificates") is None:
        raise SetupError("the system's certificates are changed by root, with update-ca-certificates", hint="use sudo; `apt install ca-certificates`")
    name = f"{places.tag}-previews"
    installed = SYSTEM / f"{name}.crt"
    if remove:
        installed.unlink(missing_ok=True)
    else:
        SYSTEM.mkdir(parents=True, exist_ok=True)
        installed.write_bytes(authority.read_bytes())
        installed.chmod(0o644)
    spawn.run(["update-ca-certificates"], timeout=120).check()
    done = [str(installed)]
    database = Path.home() / ".pki" / "nssdb"
    if database.is_dir() and shutil.which("certutil"):
        action = ["-D"] if remove else ["-A", "-t", "C,,", "-i", str(authority)]
        spawn.run(["certutil", "-d", f"sql:{database}", *action, "-n", name], timeout=30).check()
        done.append(str(database))
    if json:
        show.as_json({"trusted": not remove, "places": done})
    else:
        print("\n".join(f"{'no longer ' if remove else ''}trusted by {place}" for place in done))
