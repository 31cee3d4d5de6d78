"""The package as it is built: the guest agent in it is one small static program, and the same sources give the same bytes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from corral.agent_binary import agent_binary

ROOT = Path(__file__).resolve().parents[2]


def test_the_agent_is_static_and_below_four_megabytes() -> None:
    program = agent_binary().read_bytes()
    assert len(program) < 4_000_000
    assert program[:4] == b"\x7fELF"
    headers, size, count = (int.from_bytes(program[a:b], "little") for a, b in ((32, 40), (54, 56), (56, 58)))
    interpreter = 3
    assert interpreter not in {int.from_bytes(program[at : at + 4], "little") for at in range(headers, headers + size * count, size)}


def test_no_file_of_requirements_names_an_index() -> None:
    for path in (ROOT / "requirements").iterdir():
        assert "://" not in path.read_text()


def test_importing_the_sdk_loads_no_server_and_no_command_line() -> None:
    script = "import sys, corral; corral.Sandbox; print([m for m in ('fastapi', 'sqlalchemy', 'typer', 'rich', 'uvicorn', 'structlog') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
