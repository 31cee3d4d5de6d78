"""Comparing two trees: what is the same is found so without reading what isn't there, and nothing a guest wrote makes it long or large."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from corral.node import compare
from corral.node.compare import Side
from corral.schema.snapshot import Diff

TIB = 1 << 40


@pytest.fixture
def trees(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    return tmp_path / "one", tmp_path / "two"


def differ(trees: tuple[Path, Path], *, given_up: bool = False) -> Diff:
    event = threading.Event()
    if given_up:
        event.set()
    one, two = (Side(tree, [tree]) for tree in trees)
    return compare.compare(one, two, settled=0.0, text=False, limit=1000, given_up=event)


def sparse(path: Path, size: int, **pieces: str) -> None:
    """A file of holes, with text at some offsets."""
    with path.open("wb") as file:
        file.truncate(size)
        for offset, text in pieces.items():
            file.seek(int(offset.removeprefix("at_")))
            file.write(text.encode())


def test_holes_are_not_read(trees: tuple[Path, Path]) -> None:
    one, two = trees
    for tree in trees:
        sparse(tree / "empty", TIB)
        sparse(tree / "same", TIB, at_700000000000="x")
    sparse(one / "differs", TIB, at_700000000000="x")
    sparse(two / "differs", TIB, at_700000000000="y")
    sparse(one / "only-one-has-data", TIB)
    sparse(two / "only-one-has-data", TIB, at_5000="y")
    # Data that is nothing but zeros is a hole's content.
    sparse(one / "zeros", TIB)
    sparse(two / "zeros", TIB, at_5000="\0")
    found = differ(trees)
    assert [change.path for change in found.changes] == ["/differs", "/only-one-has-data"]
    assert not found.incomplete


def test_the_time_is_looked_at_within_a_file(trees: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for tree in trees:
        (tree / "large").write_bytes(bytes(range(256)) * (4 << 12))
    assert differ(trees) == Diff(changes=[], incomplete=False)
    monkeypatch.setattr(compare, "_READ", 1)
    monkeypatch.setattr(compare, "LONGEST", 0.1)
    assert differ(trees).incomplete


def test_a_caller_that_gives_up_ends_it(trees: tuple[Path, Path]) -> None:
    (trees[0] / "file").touch()
    assert differ(trees, given_up=True) == Diff(changes=[], incomplete=True)


def test_names_beyond_the_room_for_them_are_left_out_and_said(trees: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "PENDING", 100_000)
    for tree in trees:
        (tree / "a-many").mkdir()
        for number in range(1000):
            os.mknod(tree / "a-many" / f"{number:04}")
    (trees[1] / "z-few").mkdir()
    (trees[1] / "z-few" / "new").touch()
    found = differ(trees)
    assert [change.path for change in found.changes] == ["/z-few", "/z-few/new"]
    assert found.incomplete
