"""A short run of `corral chaos` with a fixed plan: nothing is lost, untrue or left behind while everything is killed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from corral.places import Places
from harness import homes

SECONDS = 30


@pytest.fixture
def place() -> Iterator[Path]:
    """Where its home goes: not into /tmp, which may be in memory and small."""
    made = homes.make("chaos")
    yield made
    shutil.rmtree(made)


@pytest.mark.slow
@pytest.mark.timeout(600)  # the fire is short; taking everything down and up again on a busy machine is not
def test_no_promise_is_broken_while_everything_is_killed(shared: Places, place: Path) -> None:
    chosen = os.environ.get("CORRAL_TEST_RUNSC")
    env = {**os.environ, **({"CORRAL_RUNSC": chosen} if chosen else {}), "TMPDIR": str(place), "CORRAL_POOL": "4"}
    options = ["--minutes", str(SECONDS / 60), "--seed", "20", "--home", str(shared.home), "--interval", "1.5", "--patience", "180", "--json"]
    run = subprocess.run([sys.executable, "-m", "corral", "chaos", *options], env=env, capture_output=True, text=True, check=False)
    assert run.returncode in (0, 1), run.stderr
    document = json.loads(run.stdout)
    assert document["violations"] == []
    assert run.returncode == 0
    assert {"create", "count", "upload"} <= document["did"].keys()
    assert sum(document["done_to_it"].values()) >= 3
    assert list(place.iterdir()) == []
