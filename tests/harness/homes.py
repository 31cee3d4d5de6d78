"""Homes of test runs. Their names tell the run's process, so that the next run can end what a killed one has left."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from corral import images
from corral.node import mounts, programs
from corral.places import Places
from harness import leaks
from harness.server import Server

WHERE = Path("/var/tmp")
NAMES = "corral-test-"
"""What the names begin with; the number of the run's process follows."""


def make(kind: str) -> Path:
    return Path(tempfile.mkdtemp(prefix=f"{NAMES}{os.getpid()}-{kind}-", dir=WHERE))


def furnish(places: Places, shared: Places, names: Sequence[str]) -> None:
    """Give a home images of the one that runs share, and the runsc that is to be tested: first on PATH, else the shared home's."""
    images.share(places, shared, names)
    if chosen := os.environ.get("CORRAL_TEST_RUNSC"):
        os.environ["PATH"] = f"{Path(chosen).parent}:{os.environ['PATH']}"
    else:
        programs.share(places, shared)


@contextmanager
def without_engine(kind: str, *, below: str = "") -> Iterator[Places]:
    """A home for a test of mounts, disks and files only; what these leave there is unmounted and deleted. `below`: the name of a directory in it that is to be the home."""
    made = make(kind)
    places = Places(made / below)
    yield places
    _unmount(places)
    shutil.rmtree(made)


def sweep_killed(shared: Places) -> None:
    """End what test runs that were killed have left on this machine."""
    for path in WHERE.glob(f"{NAMES}*-*"):
        run = path.name.removeprefix(NAMES).partition("-")[0]
        if run.isdigit() and not Path("/proc", run).exists():
            if not Places(path).engines.exists():
                # The killed run had its runsc from elsewhere; `corral down` wants one to end what it finds.
                programs.share(Places(path), shared)
            Server(path).down()
            _unmount(Places(path))
            shutil.rmtree(path)


@contextmanager
def running(server: Server, *arguments: str) -> Iterator[None]:
    """A server of a home of its own, which leaves nothing and is deleted."""
    server.start(*arguments)
    try:
        yield
    finally:
        server.down()
    left = leaks.of_ended_home(Places(server.home))
    shutil.rmtree(server.home)
    assert not left


def _unmount(places: Places) -> None:
    mounts.sweep(places.run)
    mounts.sweep(places.home)
    shutil.rmtree(places.run, ignore_errors=True)
