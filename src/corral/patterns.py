"""Patterns of paths: those of COPY (Go's `filepath.Match`, and `**`) and those of .dockerignore. No I/O."""

from __future__ import annotations

import functools
import posixpath
import re
from collections.abc import Sequence

from corral.errors import InvalidArgument


@functools.cache
def compiled(pattern: str) -> re.Pattern[str]:
    """A whole path, relative and with single slashes. Raises `InvalidArgument` for a pattern that is none."""
    out: list[str] = []
    at = 0
    while at < len(pattern):
        character = pattern[at]
        if pattern.startswith("**", at):
            at += 2
            if pattern.startswith("/", at):
                out.append("(?:.*/)?")
                at += 1
            else:
                out.append(".*")
            continue
        at += 1
        match character:
            case "*":
                out.append("[^/]*")
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
    try:
        return re.compile("".join(out), re.DOTALL)
    except re.error:
        raise _wrong(pattern) from None


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
        self._rules: list[tuple[bool, re.Pattern[str]]] = []
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
