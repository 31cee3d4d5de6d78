"""The image `base`: the host's Debian or Ubuntu release with what a program, a person or an agent expects to find, and a user `user`.

Made by mmdebstrap from packages, without a registry. Packages and package lists are kept in the cache, from which a later build works without a network.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from corral import spawn
from corral.errors import SetupError
from corral.images import base_files, certificates
from corral.images.host_mirrors import HostMirrors, of_key
from corral.images.recipe import Defaults, OnLine
from corral.images.release import Release, host_release, host_sources

_PACKAGES = (
    *("build-essential", "git", "nodejs", "npm", "python-is-python3", "python3", "python3-dev", "python3-pip", "python3-venv", "sqlite3"),
    *("ca-certificates", "curl", "iproute2", "jq", "less", "procps", "ripgrep", "tzdata", "unzip", "usr-is-merged", "wget", "xz-utils"),
)


def key(*, host_mirrors: bool) -> str:
    release = host_release()
    parts = {
        "version": 1,
        "release": [release.distribution, release.codename, platform.machine()],
        "packages": sorted(_PACKAGES),
        "files": base_files.VERSION,
        "certificates": sorted(certificates.host_extra()),
    }
    return "base-" + hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16] + of_key(release, host_mirrors=host_mirrors)


def build(root: Path, *, cache: Path, on_line: OnLine, host_mirrors: bool) -> Defaults:
    """See `Recipe.build`."""
    release = host_release()
    install(root, release, cache, on_line, name="base", packages=_PACKAGES)
    on_line("image base: setting it up for use")
    extra = base_files.finish(root, release, mirrors=HostMirrors.of_host(release) if host_mirrors else None)
    return Defaults(
        env={"PATH": "/home/user/.local/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", **extra},
        user="user",
        workdir="/home/user",
        command=("/bin/bash", "-l"),
    )


class _Cache:
    """Downloaded packages and package lists of one release."""

    def __init__(self, directory: Path) -> None:
        self.archives = directory / "archives"
        self.lists = directory / "lists"
        self.archives.mkdir(parents=True, exist_ok=True)

    @property
    def has_lists(self) -> bool:
        return self.lists.is_dir() and any(self.lists.glob("*_Packages*"))


def install(root: Path, release: Release, downloads: Path, on_line: OnLine, *, name: str, packages: Sequence[str]) -> None:
    """A system of these packages: fresh ones when the archive answers, else those of the cache. Raises `SetupError`."""
    if not shutil.which("mmdebstrap"):
        raise SetupError(f"mmdebstrap, which builds the image `{name}`, is not installed", hint="apt-get install mmdebstrap")
    cache = _Cache(downloads / f"{release.distribution}-{release.codename}")
    say = _Progress(on_line, name)
    try:
        _mmdebstrap(root, release, cache, say, packages, online=True)
    except spawn.ProgramFailed as error:
        if not cache.has_lists:
            raise SetupError(
                f"the packages of the image `{name}` can't be installed: {error.message}",
                hint="check that `apt-get update` works on this machine (network, proxy, mirror), then run `corral setup` again",
            ) from error
        on_line(f"image {name}: the package archive can't be used; building from the packages kept in the cache")
        _empty(root)
        _mmdebstrap(root, release, cache, say, packages, online=False)


def _mmdebstrap(root: Path, release: Release, cache: _Cache, say: _Progress, packages: Sequence[str], *, online: bool) -> None:
    archives, lists = shlex.quote(str(cache.archives)), shlex.quote(str(cache.lists))
    into = f'mkdir -p "$1"/var/cache/apt/archives "$1"/var/lib/apt/lists && cp -a {archives}/. "$1"/var/cache/apt/archives/'
    if not online:
        into += f' && cp -a {lists}/. "$1"/var/lib/apt/lists/'
    keep_lists = f'rm -rf {lists}.new && cp -a "$1"/var/lib/apt/lists {lists}.new && rm -rf {lists} && mv {lists}.new {lists}'
    keep_archives = f'for deb in "$1"/var/cache/apt/archives/*.deb; do cp -an "$deb" {archives}/; done'
    skipped = ["download/empty", "essential/unlink", "cleanup/apt", *([] if online else ["update"])]
    argv = [
        # If this process is killed, mmdebstrap ends too, and everything it started with it.
        *("setpriv", "--pdeathsig", "TERM", "mmdebstrap", "--mode=root", "--variant=apt", "--format=directory"),
        *(f"--aptopt={option}" for option in _apt_options()),
        "--dpkgopt=force-unsafe-io",
        f"--include={','.join(packages)}",
        f"--skip={','.join(skipped)}",
        f"--setup-hook={into}",
        f"--customize-hook={keep_archives}",
        *([f"--customize-hook={keep_lists}"] if online else []),
        *(release.codename, str(root)),
        *(source.line(release.keyring) for source in host_sources(release)),
    ]
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    spawn.run(argv, timeout=3600, env=environment, on_line=say).check()


def _apt_options() -> list[str]:
    """No recommended packages, no translations, and the host's own way to the network."""
    options = ['APT::Install-Recommends "false"', 'Acquire::Languages "none"', 'Acquire::Retries "2"', 'Acquire::http::Timeout "20"']
    dump = spawn.run(["apt-config", "dump", "--format", "%f %v%n", "Acquire"], timeout=30)
    for line in dump.stdout.decode(errors="replace").splitlines():
        name, _, value = line.partition(" ")
        if value and name.lower().endswith(("::proxy", "::cainfo")):
            options.append(f'{name} "{value}"')
    return options


class _Progress:
    """Turns the thousands of lines of an installation into a few for a person."""

    _PHASES: ClassVar[dict[str, str]] = {
        "running apt-get update": "reading the package lists",
        "downloading packages with apt": "downloading",
        "installing essential packages": "installing the essential packages",
        "installing remaining packages": "installing everything else",
    }

    def __init__(self, on_line: OnLine, name: str) -> None:
        self._on_line = on_line
        self._name = name
        self._unpacked = 0

    def __call__(self, line: str) -> None:
        if line.startswith(("E:", "Err:")):
            self._on_line(f"image {self._name}: {line}")
        elif line.startswith("I: "):
            for start, phase in self._PHASES.items():
                if line.startswith("I: " + start):
                    self._on_line(f"image {self._name}: {phase}")
        elif line.startswith("Setting up "):
            self._unpacked += 1
            if self._unpacked % 100 == 0:
                self._on_line(f"image {self._name}: {self._unpacked} packages installed")


def _empty(directory: Path) -> None:
    for entry in directory.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
