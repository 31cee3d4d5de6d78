"""Setting up this very machine: what holds when everything is there, and what a user is told when it can't be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from corral.errors import SetupError
from corral.node import runsc
from corral.places import Places
from corral.setup.checks import CHECKS
from corral.setup.install import setup

ENGINE = [check for check in CHECKS if check.name == "runsc"]


def corral(*arguments: str, home: Path, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "CORRAL_HOME": str(home)}
    return subprocess.run([*before, sys.executable, "-m", "corral", *arguments], env=env, capture_output=True, text=True, timeout=300, check=False)


def test_where_everything_is_there_setup_changes_nothing_and_says_nothing(shared: Places) -> None:
    done = corral("setup", home=shared.home)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_doctor_finds_a_machine_that_runs_sandboxes(shared: Places) -> None:
    done = corral("doctor", "--json", home=shared.home)
    report = json.loads(done.stdout)
    assert report["ok"] is True
    assert done.returncode == 0
    assert all(line["text"] for line in report["checks"])


def test_a_runsc_on_path_that_does_not_work_is_passed_over(shared: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    works = runsc.find(shared).path
    places = Places(tmp_path / "home")
    (places.engines / "20240729").mkdir(parents=True)
    (places.engines / "20240729" / "runsc").symlink_to(works)
    broken = tmp_path / "bin" / "runsc"
    broken.parent.mkdir()
    broken.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "runsc version release-20991231.0" && exit 0\nexit 1\n')
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{broken.parent}:{os.environ['PATH']}")
    lines: list[str] = []
    setup(places, say=lines.append, image_names=(), checks=ENGINE)
    assert runsc.find(places).path == works
    assert any("chose runsc" in line and str(works) in line for line in lines)
    setup(places, say=lines.append, image_names=(), checks=ENGINE)
    assert len(lines) == 1


@pytest.mark.parametrize(
    ("before", "words"),
    [
        (("setpriv", "--bounding-set", "-sys_admin"), "may not mount"),
        (("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"), "ordinary user"),
    ],
    ids=["root without rights", "an ordinary user"],
)
def test_without_rights_one_sentence_says_the_mend_and_nothing_is_half_installed(before: tuple[str, ...], words: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    home = tmp_path / "home"
    if subprocess.run([*before, sys.executable, "-c", "import corral"], capture_output=True, check=False).returncode:
        pytest.skip(f"{sys.executable} can't be read by an ordinary user")
    done = corral("setup", home=home, before=before)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not home.exists()


def test_what_cannot_be_fetched_is_said_with_the_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home without an engine on a machine without package tools or a network."""
    empty = tmp_path / "bin"
    empty.mkdir()
    monkeypatch.setenv("PATH", str(empty))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(SetupError, match="could not be had") as caught:
        setup(Places(tmp_path / "home"), say=lambda _: None, image_names=(), checks=ENGINE)
    assert "PATH" in str(caught.value.hint)
