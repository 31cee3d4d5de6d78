"""The first command a new user types, against this run's server."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from harness.server import Server


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_quickstart_runs_a_real_projects_tests_in_a_sandbox_and_tells_their_real_result(server: Server) -> None:
    done = subprocess.run([sys.executable, "-m", "corral", "quickstart"], env=server.env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = re.search(r"h11's tests in the sandbox: (\d+) passed, 0 failed, (\d+) skipped", done.stdout)
    assert summary is not None
    assert int(summary[1]) > 50
    assert done.stdout.count(" PASSED ") == int(summary[1])
    assert "│ 42" in done.stdout
    assert "gVisor" in done.stdout
    assert server.url in done.stdout
