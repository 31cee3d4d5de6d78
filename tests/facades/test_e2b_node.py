"""E2B's client for Node. It is taken from CORRAL_TEST_E2B_NODE, a directory with `e2b` in its node_modules: npm's packages are no part of Corral's test requirements."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from harness.server import Server

PACKAGE = os.environ.get("CORRAL_TEST_E2B_NODE")


@pytest.mark.skipif(
    PACKAGE is None or shutil.which("node") is None, reason="CORRAL_TEST_E2B_NODE names no directory with the npm package e2b, or there is no node"
)
def test_a_script_for_node_works_unchanged(server: Server) -> None:
    environment = {**os.environ, "E2B_API_KEY": "e2b_" + server.key.removeprefix("ck_"), "E2B_API_URL": server.url, "E2B_SANDBOX_URL": server.url}
    done = subprocess.run(["node", Path(__file__).with_name("e2b.mjs")], env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "all of it\n"), done.stderr
