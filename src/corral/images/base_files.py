"""What the image `base` gets after its packages: a user, package sources, trusted certificates, defaults; and what it loses: documentation, caches, identity."""

from __future__ import annotations

import shutil
from pathlib import Path

from corral import spawn
from corral.images import certificates
from corral.images.host_mirrors import HostMirrors
from corral.images.release import Release, Source

VERSION = 2
"""Raise it with every change of this module that should reach images already built."""

_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"

_DPKG = """\
# Documentation takes a third of the image and nobody reads it in a sandbox. Licences stay.
path-exclude=/usr/share/doc/*
path-include=/usr/share/doc/*/copyright
path-exclude=/usr/share/man/*
path-exclude=/usr/share/info/*
path-exclude=/usr/share/locale/*
"""

_PIP = """\
[global]
# The sandbox is the environment: installing into it is what it is for.
break-system-packages = true
disable-pip-version-check = true
"""

_NPM_USER = """\
prefix=/home/user/.local
fund=false
audit=false
update-notifier=false
"""


def finish(root: Path, release: Release, *, mirrors: HostMirrors | None, user: bool = True) -> dict[str, str]:
    """Make an installed root ready for use, with a user `user` if asked; returns environment variables that its processes need."""
    if user:
        _chroot(root, "useradd", "--create-home", "--uid", "1000", "--shell", "/bin/bash", "user")
    _quick_profile(root / "etc/profile")
    (root / "etc/hostname").write_text("sandbox\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n")
    _write(root / "etc/dpkg/dpkg.cfg.d/corral", _DPKG)
    _write(root / "etc/apt/apt.conf.d/90corral", 'APT::Install-Recommends "false";\nAcquire::Languages "none";\n')
    _write(root / "etc/pip.conf", _PIP)
    if user:
        _write(root / "home/user/.npmrc", _NPM_USER, owner=1000)
    _sources(root, release, release.official)
    environment = _trust(root)
    if mirrors:
        _sources(root, release, mirrors.apt)
        environment |= mirrors.write(root)
    _clean(root)
    return environment


def _quick_profile(path: Path) -> None:
    """Let a login shell look at its own variable for the user instead of running `id`: half of what `bash -l -c true` costs inside."""
    if path.is_file():
        path.write_text(path.read_text().replace('"$(id -u)"', '"${EUID:-$(id -u)}"'))


def _chroot(root: Path, *argv: str) -> None:
    spawn.run(["chroot", str(root), *argv], timeout=300, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}).check()


def _write(path: Path, text: str, *, owner: int | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    if owner is not None:
        shutil.chown(path, owner, owner)


def _sources(root: Path, release: Release, sources: tuple[Source, ...]) -> None:
    for old in (root / "etc/apt/sources.list.d").glob("*"):
        old.unlink()
    (root / "etc/apt/sources.list").write_text("".join(source.line(release.keyring) + "\n" for source in sources))


def _trust(root: Path) -> dict[str, str]:
    """Add the host's extra authorities. Programs that bring a bundle of their own are told of the system's, but only where the two differ."""
    known = certificates.bundled(root / _BUNDLE.lstrip("/"))
    extra = {digest: certificate for digest, certificate in certificates.host_extra().items() if digest not in known}
    if not extra:
        return {}
    for digest, certificate in extra.items():
        _write(root / f"usr/local/share/ca-certificates/corral-host-{digest}.crt", certificate.decode() + "\n")
    _chroot(root, "update-ca-certificates")
    return {"SSL_CERT_FILE": _BUNDLE, "REQUESTS_CA_BUNDLE": _BUNDLE, "NODE_EXTRA_CA_CERTS": _BUNDLE}


def _clean(root: Path) -> None:
    for directory in ("usr/share/man", "usr/share/info", "usr/share/locale", "usr/share/lintian", "var/lib/apt/lists", "var/cache/apt", "var/log", "tmp"):
        _empty(root / directory)
    for entry in (root / "usr/share/doc").iterdir():
        # Some packages share a directory by a link: what it points to is cleaned in its own turn.
        if entry.is_dir() and not entry.is_symlink():
            for path in entry.iterdir():
                if path.name != "copyright":
                    _remove(path)
    (root / "var/lib/apt/lists/partial").mkdir(mode=0o700)
    (root / "var/cache/apt/archives/partial").mkdir(parents=True, mode=0o700)
    for generated in ("etc/machine-id", "var/lib/dbus/machine-id", "etc/resolv.conf", "var/cache/ldconfig/aux-cache"):
        (root / generated).unlink(missing_ok=True)
    # Device nodes come from the sandbox's own /dev; those that mmdebstrap made would only be in the way.
    _empty(root / "dev")


def _empty(directory: Path) -> None:
    if directory.is_dir():
        for entry in directory.iterdir():
            _remove(entry)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
