"""Other people's programs, fetched by the host's own package clients when a test first asks, and kept in the cache of test runs. Where they can't be, the test is skipped."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from corral.places import Places

SECONDS = 300
"""That fetching may take."""


def need_index() -> None:
    """Skip where no index of Python packages is to be reached: without a network what was not kept can't be made."""
    with tempfile.TemporaryDirectory() as place:
        words = ["-m", "pip", "download", "-q", "--no-deps", "--no-cache-dir", "--retries=0", "-d", place, "typing-extensions"]
        asked = subprocess.run([sys.executable, *words], capture_output=True, timeout=SECONDS, check=False)
    if asked.returncode:
        pytest.skip("no index of Python packages is to be reached")


def fetched(shared: Places, name: str, *command: str) -> Path:
    """A directory that `command` has filled; `{to}` in it is the directory."""
    kept = shared.home / "cache" / f"fetched-{name}"
    if not kept.exists():
        if shutil.which(command[0]) is None:
            pytest.skip(f"there is no {command[0]} on this machine to fetch {name} with")
        with tempfile.TemporaryDirectory(dir=kept.parent) as half:
            words = [word.replace("{to}", half) for word in command]
            try:
                done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, check=False)
            except subprocess.TimeoutExpired:
                pytest.skip(f"{name} was not fetched within {SECONDS} s")
            if done.returncode:
                pytest.skip(f"{name} can't be fetched: {done.stderr[-500:]}")
            shutil.copytree(half, kept, symlinks=True)
    return kept


def wheels(shared: Places, package: str) -> Path:
    """A PyPI package with what it needs, for the Python 3.11 of the image `base`."""
    return fetched(shared, package, sys.executable, "-m", "pip", "download", "-q", "--only-binary=:all:", "--python-version=3.11", "-d", "{to}", package)


def installed(shared: Places, package: str) -> Path:
    """A PyPI package with what it needs, to be put on `sys.path` here."""
    return fetched(shared, f"installed-{package}", sys.executable, "-m", "pip", "install", "-q", "--target", "{to}", package)


def node_modules(shared: Places, *packages: str) -> Path:
    """npm packages, in `node_modules` of the directory."""
    return fetched(
        shared, "-".join(["npm", *packages]).replace("/", "_"), "npm", "install", "--prefix", "{to}", "--no-audit", "--no-fund", "--ignore-scripts", *packages
    )


def debian(shared: Places, name: str, *packages: str) -> Path:
    """The files of packages of this machine's release, which the image `base` is of."""
    unpack = f'cd {{to}} && apt-get download -q {" ".join(packages)} && for one in *.deb; do dpkg-deb -x "$one" . && rm "$one"; done'
    return fetched(shared, name, "sh", "-c", unpack)
