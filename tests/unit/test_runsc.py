"""Finding runsc."""

from __future__ import annotations

from pathlib import Path

import pytest

from corral.errors import SetupError
from corral.node import runsc
from corral.places import Places


@pytest.mark.parametrize(
    ("output", "version", "date"),
    [
        ("runsc version 0.0~20240729.0\nspec: 1.0.2-dev\n", "0.0~20240729.0", 20240729),
        ("runsc version release-20260905.0\nspec: 1.2.1\n", "release-20260905.0", 20260905),
    ],
)
def test_versions_are_understood(output: str, version: str, date: int) -> None:
    assert runsc.parse_version(output) == (version, date)


def test_what_is_no_version_is_not_taken_for_one() -> None:
    assert runsc.parse_version("runsc version VERSION_MISSING\n") is None


def _program(path: Path, version: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho 'runsc version {version}'\n")
    path.chmod(0o755)
    return path


def test_the_first_usable_one_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = _program(tmp_path / "bin" / "runsc", "release-20230101.0")
    monkeypatch.setenv("PATH", f"{old.parent}:/usr/bin:/bin")
    places = Places(tmp_path / "home")
    _program(places.engines / "20240729" / "runsc", "0.0~20240729.0")
    newest = _program(places.engines / "20260905" / "runsc", "release-20260905.0")
    assert runsc.find(places).path == newest


def test_every_fault_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = _program(tmp_path / "bin" / "runsc", "release-20230101.0")
    monkeypatch.setenv("PATH", f"{old.parent}:/usr/bin:/bin")
    with pytest.raises(SetupError, match=r"release-20230101\.0.*20240729 or later") as refused:
        runsc.find(Places(tmp_path / "home"))
    assert "corral setup" in str(refused.value)
