"""HTTP requests as rules see them: patterns for methods, paths, headers and queries. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from urllib.parse import parse_qsl, unquote_to_bytes

from corral.schema.egress import HttpMatch

QUERY_FIELDS = 1000


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """The head of a request. `target` is what stands in the request line; header names are lower case."""

    method: str
    target: str
    name: str | None
    address: int | None
    port: int
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    @property
    def path(self) -> str:
        return normal_path(self.target)

    @property
    def paths(self) -> tuple[str, ...]:
        """What servers may take for the path: without dot segments, and (by those that route a path as it comes) with them."""
        return self.path, _joined(_decoded(self.target))

    @property
    def query(self) -> list[tuple[str, str]]:
        return parse_qsl(self.target.partition("#")[0].partition("?")[2], keep_blank_values=True, max_num_fields=QUERY_FIELDS)


def normal_path(target: str) -> str:
    """The path of a request's target, percent-decoded once, dot segments removed (RFC 3986, 5.2.4), runs of slashes made one."""
    text = _decoded(target)
    kept: list[str] = []
    for segment in text.split("/"):
        match segment:
            case "" | ".":
                continue
            case "..":
                del kept[-1:]
            case _:
                kept.append(segment)
    slash = "/" if kept and text.rsplit("/", 1)[-1] in ("", ".", "..") else ""
    return "/" + "/".join(kept) + slash


def _decoded(target: str) -> str:
    raw = target.partition("#")[0].partition("?")[0]
    return unquote_to_bytes(raw).decode(errors="replace").replace("\\", "/")


def _joined(text: str) -> str:
    """With one slash where there are several."""
    return re.sub("/+", "/", "/" + text)


def matches(match: HttpMatch, request: HttpRequest, *, strict: bool) -> bool:
    """Whether all that is given holds. Of a header or field that comes more than once, and of a path with dot segments, `strict` wants every reading to match, else one is enough:

    servers differ in which of them they take, so a rule that allows must hold for each, and one that denies for any.
    """
    hold = all if strict else any
    if match.methods is not None and request.method not in match.methods:
        return False
    if match.path is not None and not hold(like(match.path, path) for path in request.paths):
        return False
    if match.headers is not None and not _each({k.lower(): v for k, v in match.headers.items()}, request.headers, strict=strict):
        return False
    return match.query is None or _each(match.query, request.query, strict=strict)


def _each(patterns: dict[str, str], fields: Iterable[tuple[str, str]], *, strict: bool) -> bool:
    given: dict[str, list[str]] = {}
    for name, value in fields:
        given.setdefault(name, []).append(value)
    hold = all if strict else any
    return all(name in given and hold(like(pattern, value) for value in given[name]) for name, pattern in patterns.items())


def like(pattern: str, text: str) -> bool:
    """Whether the text has the form: `*` stands for anything, `?` for one character. Each piece between stars is looked for once, from the left: no backtracking."""
    first, *others = _pieces(pattern)
    if not others:
        return first.fullmatch(text) is not None
    if (found := first.match(text)) is None:
        return False
    at = found.end()
    for piece in others[:-1]:
        if (found := piece.search(text, at)) is None:
            return False
        at = found.end()
    # The last piece has as many characters as it matches.
    start = len(text) - pattern[::-1].find("*")
    return start >= at and others[-1].fullmatch(text, start) is not None


@lru_cache(maxsize=4096)
def _pieces(pattern: str) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile("".join("." if character == "?" else re.escape(character) for character in piece), re.DOTALL) for piece in pattern.split("*"))
