"""Debian packages: installed for good when a program is missing, or only fetched, from a release the machine does not otherwise use."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from corral import spawn
from corral.errors import SetupError
from corral.setup.check import Say

INSTALL_TIMEOUT = 1200
"""Seconds: a slow mirror and another apt-get that must end first."""


def available() -> bool:
    return shutil.which("apt-get") is not None


def install(packages: Sequence[str], say: Say) -> None:
    """Install packages of the machine's own release. Raises `SetupError` with apt-get's own words."""
    if not available():
        raise SetupError(f"{', '.join(packages)} must be installed and there is no apt-get here", hint="install them with this system's package manager")
    say(f"installs packages with apt-get: {' '.join(packages)}")
    command = ["apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=300", "install", "--no-install-recommends", *packages]
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    first = spawn.run(command, timeout=INSTALL_TIMEOUT, env=env)
    if first.code == 0:
        return
    # The lists may be missing (a fresh image) or name versions the mirror no longer has.
    updated = spawn.run(["apt-get", "-q", "-o", "DPkg::Lock::Timeout=300", "update"], timeout=INSTALL_TIMEOUT, env=env)
    second = spawn.run(command, timeout=INSTALL_TIMEOUT, env=env) if updated.code == 0 else updated
    if second.code:
        words = (second.stderr or second.stdout).decode(errors="replace").strip().splitlines()
        raise SetupError(
            f"apt-get could not install {', '.join(packages)}: {' / '.join(words[-3:])}",
            hint=f"mend what it says, then run `apt-get install {' '.join(packages)}`",
        )


def candidate(package: str) -> str | None:
    """The version that the machine's own sources would install."""
    output = spawn.run(["apt-cache", "policy", package], timeout=60, env={**os.environ, "LC_ALL": "C"}).stdout.decode(errors="replace")
    for line in output.splitlines():
        word, _, value = line.strip().partition(": ")
        if word == "Candidate":
            return None if value == "(none)" else value
    return None


def fetch(package: str, directory: Path) -> Path:
    """Download a package of the machine's own sources, checked by apt."""
    return _download(package, directory, [])


def fetch_from(package: str, suite: str, *, beside: str, directory: Path) -> Path:
    """Download a package of `suite`, from the mirror where the machine gets the release `beside`. The machine's sources and lists stay as they are."""
    mirror = _mirror(beside)
    with tempfile.TemporaryDirectory(prefix="corral-apt-") as name:
        place = Path(name)
        for part in ("lists/partial", "cache/archives/partial"):
            (place / part).mkdir(parents=True)
        keyring = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
        signed = f" [signed-by={keyring}]" if keyring.exists() else ""
        (place / "sources.list").write_text(f"deb{signed} {mirror} {suite} main\n")
        options = [
            f"Dir::Etc::sourcelist={place}/sources.list",
            "Dir::Etc::sourceparts=/dev/null",
            "Dir::Etc::preferences=/dev/null",
            "Dir::Etc::preferencesparts=/dev/null",
            f"Dir::State::lists={place}/lists",
            f"Dir::Cache={place}/cache",
            "Dir::State::status=/dev/null",
        ]
        spawn.run(["apt-get", "-q", *_flags(options), "update"], timeout=INSTALL_TIMEOUT).check()
        return _download(package, directory, options)


def unpack(package: Path, directory: Path) -> None:
    spawn.run(["dpkg-deb", "--extract", str(package), str(directory)], timeout=120).check()


def _mirror(codename: str) -> str:
    """Where the machine gets its release: no address is ours to choose."""
    form = "$(REPO_URI) $(BASE_URI)"
    output = spawn.run(["apt-get", "indextargets", "--format", form, "Created-By: Packages"], timeout=60).check().stdout.decode()
    for line in output.splitlines():
        repository, _, base = line.partition(" ")
        if base.rstrip("/").endswith(f"/dists/{codename}"):
            return repository
    raise SetupError(
        f"apt's sources name no mirror of {codename}", hint=f"add {codename} to /etc/apt/sources.list.d, or install runsc 20240729 or later yourself"
    )


def _download(package: str, directory: Path, options: Sequence[str]) -> Path:
    with tempfile.TemporaryDirectory(prefix="corral-deb-") as name:
        # As root, not as apt's user, which may not write here.
        command = ["apt-get", "-q", *_flags([*options, "APT::Sandbox::User=root"]), "download", package]
        spawn.run(command, timeout=INSTALL_TIMEOUT, cwd=name).check()
        found = next(Path(name).glob("*.deb"))
        return Path(shutil.move(found, directory / found.name))


def _flags(options: Sequence[str]) -> list[str]:
    return [word for option in options for word in ("-o", option)]
