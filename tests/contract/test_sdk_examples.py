"""The examples run, and show what they say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness.server import Server

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SHOWN = {
    "untrusted_code": ["honest: exit 0, 499999500000", "endless: killed after 5 s", "broken: exit 1, NameError", "calls home: exit 1, OSError"],
    "agent_tools": ["TypeError: list indices must be integers", "exit 0\n"],
    "rollouts": ["8 of 8 rollouts", "passed"],
    "notebook": ["[1, 2, 3]", "2.0", "IndexError"],
    "egress": ["the token is forgotten"],
    "build": ["built in a sandbox", "bytes came back"],
}


def test_every_example_is_shown() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(SHOWN)


@pytest.mark.image("base")
@pytest.mark.parametrize("name", SHOWN)
def test_an_example(name: str, server: Server) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", *(["8"] if name == "rollouts" else [])],
        env=server.env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    for text in SHOWN[name]:
        assert text in done.stdout
