"""Variables in the words of a Dockerfile: `$name`, `${name}`, with `:-`, `-`, `:+`, `+`, `:?`, `?`, `#`, `##`, `%`, `%%`, `/` and `//`."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping

from corral.errors import InvalidArgument

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def expand(text: str, values: Mapping[str, str], *, escape: str = "\\", quotes: bool = True) -> str:
    """Fill in variables. `quotes`: single quotes keep what is in them, and quotes and escapes are taken off. Raises `InvalidArgument`."""
    return _Expansion(text, values, escape, quotes=quotes).whole()


class _Expansion:
    def __init__(self, text: str, values: Mapping[str, str], escape: str, *, quotes: bool) -> None:
        self._text = text
        self._values = values
        self._escape = escape
        self._quotes = quotes
        self._at = 0

    def whole(self) -> str:
        return self._until("")

    def _until(self, end: str) -> str:
        """Up to an unquoted `end`, which is taken."""
        out: list[str] = []
        double = False
        while self._at < len(self._text):
            character = self._text[self._at]
            if character == end and not double:
                self._at += 1
                return "".join(out)
            self._at += 1
            if character == self._escape:
                out.append(self._escaped(double=double))
            elif character == "'" and self._quotes and not double:
                close = self._text.find("'", self._at)
                if close < 0:
                    raise self._wrong("a quote without an end")
                out.append(self._text[self._at : close])
                self._at = close + 1
            elif character == '"' and self._quotes:
                double = not double
            elif character == "$":
                out.append(self._variable())
            else:
                out.append(character)
        if end or double:
            raise self._wrong("a quote without an end" if double else f"a {end} is missing")
        return "".join(out)

    def _escaped(self, *, double: bool) -> str:
        following = self._text[self._at : self._at + 1]
        self._at += 1
        if not self._quotes:
            return "$" if following == "$" else self._escape + following
        if double and following not in ('"', "$", self._escape):
            return self._escape + following
        return following

    def _variable(self) -> str:
        if self._text.startswith("{", self._at):
            self._at += 1
            return self._braced()
        name = _NAME.match(self._text, self._at)
        if name is None:
            # `$1` and the like are shell's, and empty here, as Docker has it.
            if (digit := re.compile(r"[0-9@*#]").match(self._text, self._at)) is not None:
                self._at = digit.end()
                return ""
            return "$"
        self._at = name.end()
        return self._values.get(name[0], "")

    def _braced(self) -> str:
        name = _NAME.match(self._text, self._at)
        if name is None:
            raise self._wrong("${ without a name")
        self._at = name.end()
        value = self._values.get(name[0])
        operator = re.compile(r":?[-+?]|##?|%%?|//?|}").match(self._text, self._at)
        if operator is None:
            raise self._wrong(f"${{{name[0]} is not understood")
        self._at = operator.end()
        if operator[0] == "}":
            return value or ""
        word = self._until("}")
        present = bool(value) if operator[0].startswith(":") else value is not None
        match operator[0].lstrip(":"):
            case "-":
                return value or "" if present else word
            case "+":
                return word if present else ""
            case "?":
                if not present:
                    raise InvalidArgument(f"the variable {name[0]} is needed: {word or 'it is not set'}", hint=f"give it as a build argument: {name[0]}=…")
                return value or ""
            case "#" | "##":
                return _without(value or "", word, start=True, longest=operator[0] == "##")
            case "%" | "%%":
                return _without(value or "", word, start=False, longest=operator[0] == "%%")
            case _:
                pattern, _, new = word.partition("/")
                found = re.compile(fnmatch.translate(pattern).removesuffix(r"\Z").removesuffix(r"\z"))
                return found.sub(lambda _: new, value or "", count=0 if operator[0] == "//" else 1)

    def _wrong(self, why: str) -> InvalidArgument:
        return InvalidArgument(f"{self._text[:200]!r} can't be filled in: {why}")


def _without(value: str, pattern: str, *, start: bool, longest: bool) -> str:
    """Without what matches at its start or end."""
    lengths = range(len(value), -1, -1) if longest else range(len(value) + 1)
    for length in lengths:
        piece = value[:length] if start else value[len(value) - length :]
        if fnmatch.fnmatchcase(piece, pattern):
            return value[length:] if start else value[: len(value) - length]
    return value
