"""The wheel, built as a release builds it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from corral.agent_binary import agent_binary

pytestmark = pytest.mark.no_engine

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("src", "agent", "pyproject.toml", "hatch_build.py", "README.md", "LICENSE")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_wheel_holds_the_agent_for_both_families_and_its_bytes_do_not_depend_on_the_place(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, elsewhere / name, ignore=shutil.ignore_patterns("_agent", "__pycache__"))
        else:
            shutil.copy(ROOT / name, elsewhere / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", "-w", str(tmp_path / "out"), str(elsewhere)]
    subprocess.run(command, check=True, timeout=600, capture_output=True)
    with zipfile.ZipFile(next((tmp_path / "out").glob("corral-*.whl"))) as wheel:
        agents = {Path(info.filename).name: info for info in wheel.infolist() if "/_agent/" in info.filename}
        assert set(agents) == {"agent-amd64", "agent-arm64"}
        assert all(info.external_attr >> 16 & 0o111 for info in agents.values())
        assert wheel.read(agents[agent_binary().name]) == agent_binary().read_bytes()
        names = {info.filename for info in wheel.infolist()}
        assert {"corral/py.typed", "corral/quickstart/tools.txt", "corral/store/migrations/env.py"} <= names
        assert not any(name.startswith(("tests/", "agent/")) for name in names)
