"""runsc, gVisor's program: found where it is, else fetched into Corral's own engines folder. Nothing of the system is replaced."""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path

from corral.errors import CorralError, SetupError
from corral.node import runsc
from corral.setup import apt
from corral.setup.check import Finding, Say, ill, well
from corral.setup.machine import Machine
from corral.setup.self_test import self_test

PACKAGE = "runsc"
OFFICIAL = "https://storage.googleapis.com/gvisor/releases/release/20240729.0/{architecture}/runsc"
"""gVisor's own release, pinned to the one that Debian has too (documentation: user guide, installation, specific release)."""
BACKPORTS = {"bookworm": "bookworm-backports"}
"""Releases whose own runsc is too old, and where a newer one is."""


def probe_engine(machine: Machine) -> Finding:
    """The runsc that the server would take, tried as the server uses it."""
    try:
        found = runsc.find(machine.places)
        if machine.root:
            self_test(found.path)
    except CorralError as error:
        return ill(error.message, mend="run `corral setup` with a network, or put a runsc of 20240729 or later on PATH")
    tested = "started a sandbox" if machine.root else "not tried: that needs root"
    note = "; idle sandboxes are frozen, since this version polls when idle" if found.burns_when_idle else ""
    return well(f"{found.path} ({found.version}), {tested}{note}")


def install_engine(machine: Machine, say: Say) -> None:
    """Have the server take a runsc that works: another one that is here already, else one fetched from the first source that has it."""
    machine.places.engines.mkdir(parents=True, exist_ok=True)
    faults: list[str] = []
    if not _choose_present(machine, say, faults):
        _fetch(machine, say, faults)


def _choose_present(machine: Machine, say: Say, faults: list[str]) -> bool:
    for path in runsc.candidates(machine.places):
        try:
            found = runsc.probe(path)
            self_test(found.path)
        except CorralError as error:
            faults.append(error.message)
            continue
        _choose(machine, found)
        say(f"chose runsc {found.version} at {found.path}: {'; '.join(faults)}")
        return True
    return False


def _fetch(machine: Machine, say: Say, faults: list[str]) -> None:
    for source in (_from_own_release, _from_backports, _from_official_release):
        # Beside its final place, so that it arrives there by one rename, whole or not at all.
        with tempfile.TemporaryDirectory(prefix=".new-", dir=machine.places.engines, ignore_cleanup_errors=True) as name:
            directory = Path(name)
            try:
                where = source(machine, directory, say)
                if where is None:
                    continue
                directory.chmod(0o755)
                found = runsc.probe(directory / "runsc")
                self_test(found.path)
            except (CorralError, OSError) as error:
                faults.append(str(error))
                continue
            target = machine.places.engines / str(found.date)
            if target.exists():
                shutil.rmtree(target)
            directory.rename(target)
            say(f"installed runsc {found.version} from {where} in {target}")
            if _preferred(machine) != target / "runsc":
                _choose(machine, runsc.probe(target / "runsc"))
            return
    raise SetupError(
        "runsc (gVisor) could not be had: " + "; ".join(faults or ["no source has it"]), hint="connect a network, or put a runsc of 20240729 or later on PATH"
    )


def _preferred(machine: Machine) -> Path | None:
    try:
        return runsc.find(machine.places).path
    except SetupError:
        return None


def _choose(machine: Machine, found: runsc.Runsc) -> None:
    link = machine.places.engines / runsc.CHOSEN
    link.unlink(missing_ok=True)
    link.symlink_to(found.path)


def _from_own_release(machine: Machine, directory: Path, say: Say) -> str | None:
    if not apt.available():
        return None
    version = apt.candidate(PACKAGE)
    if version is None or not _new_enough(version):
        return None
    say(f"fetches the package runsc {version} from this machine's own sources")
    _take(directory, lambda into: apt.fetch(PACKAGE, into))
    return f"the package {version}"


def _from_backports(machine: Machine, directory: Path, say: Say) -> str | None:
    suite = BACKPORTS.get(machine.codename)
    if suite is None or not apt.available():
        return None
    say(f"fetches the package runsc from {suite}; apt's sources stay as they are")
    _take(directory, lambda into: apt.fetch_from(PACKAGE, suite, beside=machine.codename, directory=into))
    return suite


def _take(directory: Path, fetch: Callable[[Path], Path]) -> None:
    """Unpack a package and keep its program and copyright only."""
    package = fetch(directory)
    tree = directory / "tree"
    apt.unpack(package, tree)
    (tree / "usr/bin/runsc").rename(directory / "runsc")
    (tree / "usr/share/doc/runsc/copyright").rename(directory / "copyright")
    shutil.rmtree(tree)
    package.unlink()


def _from_official_release(machine: Machine, directory: Path, say: Say) -> str | None:
    url = OFFICIAL.format(architecture=machine.architecture)
    say(f"fetches gVisor's own release from {url}")
    body = _get(url)
    wanted = _get(url + ".sha512").split()[0].decode()
    if hashlib.sha512(body).hexdigest() != wanted:
        raise SetupError(f"{url} does not have the digest published beside it", hint="try again; if it stays so, do not use it")
    program = directory / "runsc"
    program.write_bytes(body)
    program.chmod(0o755)
    return "gVisor's own release"


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 - the scheme is in OFFICIAL
        return answer.read(200 << 20)


def _new_enough(version: str) -> bool:
    found = re.search(r"\d{8}", version)
    return found is not None and int(found[0]) >= runsc.OLDEST
