"""What a merge does with changes on two sides: nothing of ours is touched unless it is asked for, and what is the same already is left alone."""

from __future__ import annotations

from typing import Any

import pytest

from corral.node import merge
from corral.schema.snapshot import Change


def change(path: str, change: str = "changed", type: str = "file") -> Change:
    return Change.model_validate({"path": path, "change": change, "type": type})


def plan(theirs: list[Change], ours: list[Change], *, same: tuple[str, ...] = (), take: bool = False) -> dict[str, Any]:
    apart = [one for one in (*theirs, *ours) if one.path not in same]
    made = merge.plan(theirs, ours, apart, take=take)
    return {
        "removed": [one.path for one in made.removed],
        "written": [one.path for one in made.written],
        "conflicts": [one.path for one in made.conflicts],
    }


def test_what_only_they_changed_is_taken_over() -> None:
    theirs = [change("/d/new", "added"), change("/d", "added", "directory"), change("/old/x", "removed"), change("/old", "removed", "directory"), change("/f")]
    assert plan(theirs, [change("/mine", "added")]) == {"removed": ["/old/x", "/old"], "written": ["/d", "/d/new", "/f"], "conflicts": []}


def test_what_both_changed_is_a_conflict_unless_it_is_the_same_now() -> None:
    theirs, ours = [change("/f"), change("/g", "removed"), change("/h")], [change("/f", "removed"), change("/g"), change("/h")]
    assert plan(theirs, ours, same=("/h",)) == {"removed": [], "written": [], "conflicts": ["/f", "/g"]}
    assert plan(theirs, ours, same=("/h",), take=True) == {"removed": ["/g"], "written": ["/f"], "conflicts": ["/f", "/g"]}


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (change("/d", "removed", "directory"), change("/d/mine", "added")),
        (change("/d", "changed", "symlink"), change("/d/mine")),
        (change("/d/new", "added"), change("/d", "removed", "directory")),
        (change("/d/a/new", "added"), change("/d", "changed", "file")),
        (change("/pipe", "added", "fifo"), change("/else")),
    ],
)
def test_what_is_in_the_way_is_a_conflict(theirs: Change, ours: Change) -> None:
    assert plan([theirs], [ours]) == {"removed": [], "written": [], "conflicts": [theirs.path]}


def test_a_directory_that_both_touched_takes_what_is_below_it() -> None:
    theirs, ours = [change("/d/new", "added")], [change("/d", "changed", "directory"), change("/d/mine", "added")]
    assert plan(theirs, ours)["written"] == ["/d/new"]


def test_what_each_sandbox_has_of_its_own_stays() -> None:
    assert plan([change("/etc/hostname"), change("/etc/hosts")], []) == {"removed": [], "written": [], "conflicts": []}
