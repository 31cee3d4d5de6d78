"""The project whose tests are run: h11, an HTTP library of some 6,000 lines, as its authors published it, and pytest for them.

pip fetches both on the host, pinned by hash, once; the sandbox has no network. Everything is pure Python, so host and sandbox may run different ones.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from corral import spawn
from corral.errors import SetupError

NAME = "h11"
TESTS = "h11/tests"
FETCH_TIMEOUT = 600
"""Seconds for pip, on a slow line."""

_PINS = Path(__file__).parent


@dataclass(frozen=True)
class Project:
    """Two directories on the host: the unpacked source, and the wheels of what its tests need."""

    source: Path
    wheels: Path

    @property
    def lines(self) -> int:
        """Lines of Python, tests included."""
        return sum(len(path.read_bytes().splitlines()) for path in self.source.rglob("*.py"))


def fetch(cache: Path) -> Project:
    """The project, from `cache` when it was fetched before. Raises `SetupError` when pip can't fetch it."""
    pins = [_PINS / "project.txt", _PINS / "tools.txt"]
    key = hashlib.sha256(b"".join(path.read_bytes() for path in pins)).hexdigest()[:16]
    place = cache / f"quickstart-{key}"
    if not place.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".quickstart-", dir=cache, ignore_cleanup_errors=True) as name:
            fresh = Path(name)
            _fetch_into(fresh)
            fresh.chmod(0o755)
            fresh.rename(place)
    return Project(place / "source", place / "wheels")


def _fetch_into(place: Path) -> None:
    _pip(place / "sdist", "--no-binary", ":all:", "-r", str(_PINS / "project.txt"))
    _pip(place / "wheels", "--only-binary", ":all:", "-r", str(_PINS / "tools.txt"))
    archive = next((place / "sdist").glob("*.tar.gz"))
    # By tar: Python learned to refuse harmful members in 3.11.4, and Debian 12 has 3.11.2. The archive is pinned by its hash besides.
    spawn.run(["tar", "--extract", "--gzip", "--no-same-owner", "--file", str(archive), "--directory", str(place)], timeout=60).check()
    (place / archive.name.removesuffix(".tar.gz")).rename(place / "source")
    shutil.rmtree(place / "sdist")


def _pip(target: Path, *arguments: str) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--require-hashes",
        "-d",
        str(target),
        *arguments,
    ]
    try:
        spawn.run(command, timeout=FETCH_TIMEOUT).check()
    except spawn.ProgramFailed as error:
        raise SetupError(
            f"{NAME} and pytest could not be fetched: {error.message}", hint="connect a network that reaches a Python package index, then run it again"
        ) from error
