"""Patterns of paths: what they match, and that none takes longer than its path is long."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.errors import InvalidArgument
from corral.patterns import Ignore, compiled

PIECES = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]", "a": "a", "b": "b", "/": "/", "[ab]": "[ab]", "[^a]": "(?!/)[^a]", ".": r"\."}
"""What each is as an expression."""


@given(st.lists(st.sampled_from(list(PIECES)), max_size=7), st.text("ab/.", max_size=7))
def test_a_pattern_means_what_its_expression_does(pieces: list[str], path: str) -> None:
    pattern = "".join(pieces)
    read = re.findall("|".join(map(re.escape, PIECES)), pattern)
    assert bool(compiled(pattern).fullmatch(path)) == bool(re.fullmatch("".join(PIECES[piece] for piece in read), path, re.DOTALL))


@pytest.mark.parametrize("pattern", ["**/" * 40 + "x", "**a" * 40 + "x", "*a" * 40 + "x", "**/*a" * 20 + "x", "?**[ab]*" * 30 + "x"])
def test_a_strangers_pattern_ends(pattern: str) -> None:
    """As an expression, these would go on for longer than the universe."""
    for path in ("a/" * 500, "a" * 1000, "ab/" * 300 + "b"):
        assert not compiled(pattern).fullmatch(path)
        Ignore([pattern]).ignores(path[:60])


def test_the_last_line_that_matches_decides() -> None:
    ignore = Ignore(["# a comment", "*", "!src", "src/*.pyc", "!src/kept.pyc", "**/secret", "!/docs/../README.md", "docs/**/draft*"])
    kept = ["src/app.py", "src/kept.pyc", "README.md", "src/deep/er.pyc"]
    gone = ["app.py", "src/a.pyc", "src/deep/secret", "docs/x/draft.md", "secret"]
    assert [path for path in kept + gone if not ignore.ignores(path)] == kept


def test_what_is_no_pattern_is_refused() -> None:
    for pattern in ("[", "a[b", "a\\", "[b-a]", "*" * 3 + "**/[b-a]"):
        with pytest.raises(InvalidArgument, match="is no pattern"):
            compiled(pattern)
