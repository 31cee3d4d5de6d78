"""The order of a set-up: what only a person can mend first, nothing changed before; then mend what is missing, once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from corral.errors import SetupError
from corral.places import Places
from corral.setup import systemd
from corral.setup.check import Check, Finding, Say, ill, well
from corral.setup.checks import CHECKS
from corral.setup.doctor import Verdict, as_json, examine
from corral.setup.install import setup
from corral.setup.machine import Machine


@dataclass
class Part:
    """Something of a made-up machine that is there or not, and that a repair may bring."""

    name: str
    there: bool = False
    repairable: bool = True
    repair_works: bool = True
    needed: bool = True
    repaired: list[str] = field(default_factory=list[str])

    def check(self) -> Check:
        return Check(self.name, self._probe, repair=self._repair if self.repairable else None, needed=self.needed)

    def _probe(self, machine: Machine) -> Finding:
        return well("there") if self.there else ill("missing", mend=f"bring {self.name}")

    def _repair(self, machine: Machine, say: Say) -> None:
        say(f"brings {self.name}")
        if not self.repair_works:
            raise SetupError(f"no {self.name} to be had")
        self.there = True


def ready(tmp_path: Path, *parts: Part) -> list[str]:
    lines: list[str] = []
    setup(Places(tmp_path), say=lines.append, image_names=(), checks=[part.check() for part in parts])
    return lines


def test_what_is_missing_is_brought_and_said_and_the_second_time_there_is_nothing_to_do(tmp_path: Path) -> None:
    parts = (Part("a", there=True), Part("b"), Part("c"))
    assert ready(tmp_path, *parts) == ["brings b", "brings c"]
    assert ready(tmp_path, *parts) == []


def test_a_machine_that_only_a_person_can_mend_is_left_untouched(tmp_path: Path) -> None:
    missing, hopeless = Part("program"), Part("kernel", repairable=False)
    with pytest.raises(SetupError, match="missing") as caught:
        ready(tmp_path, missing, hopeless)
    assert caught.value.hint == "bring kernel"
    assert not missing.there


def test_a_needed_thing_that_cannot_be_brought_ends_the_setup(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="no program to be had"):
        ready(tmp_path, Part("program", repair_works=False))


def test_a_thing_that_is_only_better_to_have_is_told_and_the_setup_goes_on(tmp_path: Path) -> None:
    comfort, needed = Part("comfort", needed=False, repair_works=False), Part("needed")
    lines = ready(tmp_path, comfort, Part("more memory", needed=False, repairable=False), needed)
    assert needed.there
    assert any("comfort" in line and "bring comfort" in line for line in lines)
    assert any("more memory" in line for line in lines)


def test_the_doctor_changes_nothing_and_has_a_mend_for_each_failure(tmp_path: Path) -> None:
    parts = (Part("a", there=True), Part("b", needed=False), Part("c"))
    lines = list(examine(Places(tmp_path), checks=[part.check() for part in parts]))
    assert [line.verdict for line in lines] == [Verdict.OK, Verdict.WORSE, Verdict.BROKEN]
    assert [line.mend for line in lines] == ["", "bring b", "bring c"]
    assert not parts[2].there
    assert as_json(lines, ())["ok"] is False
    assert as_json(lines[:2], ())["ok"] is True


def test_what_only_a_person_can_mend_stands_first_in_the_list() -> None:
    brought = [check.repair is not None for check in CHECKS]
    assert brought == sorted(brought)
    assert len({check.name for check in CHECKS}) == len(CHECKS)


def test_the_unit_ends_only_the_server_and_never_its_sandboxes(tmp_path: Path) -> None:
    path = systemd.write_unit(Places(tmp_path / "home"), tmp_path)
    text = path.read_text()
    assert "KillMode=process" in text
    assert f"CORRAL_HOME={tmp_path}/home" in text
    with pytest.raises(SetupError, match="not run by systemd"):
        systemd.write_unit(Places(tmp_path / "home"), tmp_path / "nowhere")
