"""Patterns of paths: those of COPY (Go's `filepath.Match`, and `**`) and those of .dockerignore. No I/O."""

from __future__ import annotations

import functools
import posixpath
import re
from collections.abc import Sequence
from typing import Protocol

from corral.errors import InvalidArgument

_ANY, _DIRECTORIES, _STAR = ".*", "(?:.*/)?", "[^/]*"
"""What `**`, `**/` and `*` are."""


class Pattern(Protocol):
    """A pattern of whole paths, relative and with single slashes."""

    def fullmatch(self, string: str, /) -> object | None: ...


@functools.cache
def compiled(pattern: str) -> Pattern:
    """Raises `InvalidArgument` for a pattern that is none."""
    pieces = _pieces(pattern)
    # What an expression tries grows with a path's length to the power of these, and patterns are strangers'. One at the end takes all there is at once.
    wide = sum(piece in (_ANY, _DIRECTORIES) for piece in pieces[:-1])
    try:
        if wide <= 1 and wide + pieces.count(_STAR) <= 2:
            return re.compile("".join(pieces), re.DOTALL)
        return _Automaton(pieces)
    except re.error:
        raise _wrong(pattern) from None


def _pieces(pattern: str) -> list[str]:
    """Expressions of which each is for one character, or a wildcard."""
    out: list[str] = []
    at = 0
    while at < len(pattern):
        character = pattern[at]
        if pattern.startswith("**", at):
            at += 2
            if pattern.startswith("/", at):
                out.append(_DIRECTORIES)
                at += 1
            else:
                out.append(_ANY)
            continue
        at += 1
        match character:
            case "*":
                out.append(_STAR)
            case "?":
                out.append("[^/]")
            case "[":
                piece, at = _class(pattern, at)
                out.append(piece)
            case "\\":
                if at == len(pattern):
                    raise _wrong(pattern)
                out.append(re.escape(pattern[at]))
                at += 1
            case _:
                out.append(re.escape(character))
    return out


class _Automaton:
    """The same as the expression, in time that grows with the path's length alone. A state is a bit: how many of the pieces are behind."""

    def __init__(self, pieces: Sequence[str]) -> None:
        self._end = 1 << len(pieces)
        self._any, self._directories, self._star = (sum(1 << at for at, piece in enumerate(pieces) if piece == one) for one in (_ANY, _DIRECTORIES, _STAR))
        self._single = [(1 << at, re.compile(piece, re.DOTALL)) for at, piece in enumerate(pieces) if piece not in (_ANY, _DIRECTORIES, _STAR)]
        self._known: dict[str, int] = {}

    def fullmatch(self, string: str, /) -> object | None:
        states, within = self._skipped(1), 0
        for character in string:
            if (single := self._known.get(character)) is None:
                single = self._known[character] = sum(bit for bit, piece in self._single if piece.fullmatch(character))
            within |= states & self._directories
            moved = (states & single) << 1 | states & self._any
            moved |= within << 1 if character == "/" else states & self._star
            states = self._skipped(moved)
        return True if states & self._end else None

    def _skipped(self, states: int) -> int:
        """With those behind wildcards that stand for nothing."""
        while (more := states | (states & (self._any | self._directories | self._star)) << 1) != states:
            states = more
        return states


def _class(pattern: str, at: int) -> tuple[str, int]:
    """A character class from behind its bracket, and where it ends."""
    end = at
    negated = pattern.startswith("^", end)
    end += negated
    inside: list[str] = []
    while end < len(pattern) and (pattern[end] != "]" or not inside):
        if pattern[end] == "\\" and end + 1 < len(pattern):
            end += 1
        inside.append(pattern[end] if pattern[end] == "-" and len(inside) > 0 else re.escape(pattern[end]))
        end += 1
    if end >= len(pattern):
        raise _wrong(pattern)
    return f"(?!/)[{'^' if negated else ''}{''.join(inside)}]", end + 1


def is_pattern(text: str) -> bool:
    return any(character in text for character in "*?[\\")


def relative(path: str) -> str:
    """A path of a context as it is kept: without a slash before it, `.` and `..`; what would leave the context stays at its root."""
    return posixpath.normpath("/" + path).lstrip("/")


class Ignore:
    """The lines of a .dockerignore: the last that matches decides, `!` takes back."""

    def __init__(self, lines: Sequence[str]) -> None:
        self._rules: list[tuple[bool, Pattern]] = []
        self.has_exceptions = False
        for number, line in enumerate(lines):
            text = (line.removeprefix("\ufeff") if number == 0 else line).rstrip("\r\n")
            if text.startswith("#"):
                continue
            text = text.strip()
            keep = text.startswith("!")
            text = text[1:].strip() if keep else text
            if not text:
                continue
            cleaned = relative(text)
            if not cleaned:
                continue
            self._rules.append((keep, compiled(cleaned)))
            self.has_exceptions |= keep

    def ignores(self, path: str) -> bool:
        """Of a relative path. A directory that is ignored takes all below it along, but for exceptions."""
        parts = path.split("/")
        ignored = False
        for keep, rule in self._rules:
            if ignored is keep and any(rule.fullmatch("/".join(parts[: count + 1])) for count in range(len(parts))):
                ignored = not keep
        return ignored


def _wrong(pattern: str) -> InvalidArgument:
    return InvalidArgument(f"{pattern[:200]!r} is no pattern", hint="a backslash takes a bracket or star as itself")
