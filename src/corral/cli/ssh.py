"""`corral ssh`: the machine's own ssh, into a sandbox."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from corral.cli import options

if TYPE_CHECKING:
    from pathlib import Path

    from corral.schema.ssh import SshAccess

ASKPASS = "#!/bin/sh\nprintf '%s\\n' \"$CORRAL_SSH_TOKEN\"\n"
"""ssh asks this program for the password, so that it is on no command line."""


def ssh(
    sandbox: options.Box,
    words: Annotated[list[str] | None, typer.Argument(metavar="[SSH OPTIONS] [COMMAND...]", help="For ssh, as after the host's name.")] = None,
    *,
    user: options.User = None,
    config: Annotated[
        bool, typer.Option("--config", help="Print what belongs into ~/.ssh/config for ssh, sftp, rsync and editors with a key (`corral key create --ssh`).")
    ] = False,
) -> int:
    """Log in to a sandbox with the machine's ssh: a shell, a command, or ssh's own options such as -L 8080:localhost:80. As `rsync -e "corral ssh"` it carries rsync."""
    import os
    import shutil
    import subprocess
    import tempfile
    from pathlib import Path

    from corral import Client
    from corral.errors import SetupError

    with Client() as client:
        box = client.sandboxes.get(sandbox)
        access = box.ssh()
    login = f"{access.user}+{user}" if user else access.user
    if config:
        known = Path.home() / ".ssh" / "corral_known_hosts"
        _know(known, access)
        print(f"Host {box.name or box.id}\n    HostName {access.host}\n    Port {access.port}\n    User {login}\n    UserKnownHostsFile {known}")
        return 0
    program = shutil.which("ssh")
    if program is None:
        raise SetupError("there is no ssh on this machine", hint="install openssh-client, or use `corral shell`, which needs none")
    with tempfile.TemporaryDirectory(prefix="corral-ssh-") as directory:
        askpass, known = Path(directory) / "askpass", Path(directory) / "known_hosts"
        askpass.write_text(ASKPASS)
        askpass.chmod(0o700)
        _know(known, access)
        # The token is good for one login, and nothing else shall be tried: keys that are refused count as attempts.
        own = [f"UserKnownHostsFile={known}", "GlobalKnownHostsFile=/dev/null", "StrictHostKeyChecking=yes", "PubkeyAuthentication=no"]
        own += ["PreferredAuthentications=password", "NumberOfPasswordPrompts=1", "ControlPath=none", "LogLevel=ERROR"]
        argv = [program, "-F", "none", "-p", str(access.port), *(word for option in own for word in ("-o", option)), f"{login}@{access.host}", *(words or ())]
        env = {
            **os.environ,
            "SSH_ASKPASS": str(askpass),
            "SSH_ASKPASS_REQUIRE": "force",
            "CORRAL_SSH_TOKEN": access.token,
            "DISPLAY": os.environ.get("DISPLAY", "none"),
        }
        # Not by corral.spawn: it has our terminal and our signals for as long as somebody sits there.
        return subprocess.run(argv, env=env, check=False).returncode


def _know(file: Path, access: SshAccess) -> None:
    """Write down the server's key, in place of an older one."""
    name = access.host if access.port == 22 else f"[{access.host}]:{access.port}"
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    others = [line for line in file.read_text().splitlines() if line.split(" ")[0] != name] if file.exists() else []
    file.write_text("\n".join([*others, f"{name} {access.host_key}"]) + "\n")
