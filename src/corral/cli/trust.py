"""`corral trust`: this machine's programs trust the certificates of `corral up --tls`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from corral.cli import options, show

if TYPE_CHECKING:
    from pwd import struct_passwd

SYSTEM = Path("/usr/local/share/ca-certificates")
"""Where Debian's and Ubuntu's update-ca-certificates takes additional ones from."""
DATABASES = (".pki/nssdb", "snap/chromium/current/.pki/nssdb")
"""Below a home: Chromium's own list."""
PROFILES = (".mozilla/firefox", "snap/firefox/common/.mozilla/firefox")
"""Below a home: Firefox has a list in each profile."""


def trust(
    *,
    home: Annotated[Path | None, typer.Option(help="Corral's state [default: $CORRAL_HOME, else /var/lib/corral for root].")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Trust it no longer.")] = False,
    json: options.Json = False,
) -> None:
    """Have this machine trust the previews' certificates: the system's list, and those of Chromium and Firefox, also of whoever has used sudo, where `certutil` is. Java keeps a list of its own."""
    import os
    import shutil
    import sys

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
    done, left = [str(installed)], list[str]()
    for database, owner in _databases():
        if shutil.which("certutil") is None:
            left.append(database)
            continue
        # With no more rights than whose it is: what is below a home may lead anywhere.
        words = ["setpriv", f"--reuid={owner.pw_uid}", f"--regid={owner.pw_gid}", "--init-groups", "certutil", "-d", f"sql:{database}"]
        spawn.run([*words, "-D", "-n", name], timeout=30)  # an earlier one; where there is none, nothing happens
        if not remove:
            spawn.run([*words, "-A", "-a", "-t", "C,,", "-n", name], timeout=30, input=authority.read_bytes()).check()
        done.append(database)
    if json:
        show.as_json({"trusted": not remove, "places": done, "left": left})
    else:
        print("\n".join(f"{'no longer ' if remove else ''}trusted by {place}" for place in done))
        for place in left:
            print(f"left as it is: {place}; `apt install libnss3-tools`, and say this again", file=sys.stderr)


def _databases() -> list[tuple[str, struct_passwd]]:
    """The lists of the browsers of whoever asks, and of whoever has become root by sudo for it, where this machine knows them; and whose they are."""
    import os
    import pwd

    people = {os.geteuid(), int(os.environ.get("SUDO_UID", os.geteuid()))}
    found: list[tuple[str, struct_passwd]] = []
    for id in sorted(people):
        try:
            owner = pwd.getpwuid(id)
        except KeyError:
            continue
        at_home = Path.home() if owner.pw_uid == os.geteuid() else Path(owner.pw_dir)
        lists = [at_home / place for place in DATABASES] + [file.parent for place in PROFILES for file in sorted(at_home.glob(f"{place}/*/cert9.db"))]
        found += [(str(place), owner) for place in lists if place.is_dir()]
    return found
