"""A Dockerfile as instructions: directives, comments, continued lines, flags, here-documents. Docker's reference says how."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from corral.errors import InvalidArgument

KNOWN = frozenset(
    [
        "ADD",
        "ARG",
        "CMD",
        "COPY",
        "ENTRYPOINT",
        "ENV",
        "EXPOSE",
        "FROM",
        "HEALTHCHECK",
        "LABEL",
        "MAINTAINER",
        "ONBUILD",
        "RUN",
        "SHELL",
        "STOPSIGNAL",
        "USER",
        "VOLUME",
        "WORKDIR",
    ]
)
_WITH_FLAGS = frozenset({"ADD", "COPY", "FROM", "HEALTHCHECK", "RUN"})
_WITH_DOCUMENTS = frozenset({"ADD", "COPY", "RUN"})
_DIRECTIVE = re.compile(r"#\s*([A-Za-z][A-Za-z0-9]*)\s*=\s*(.+?)\s*$")
_FLAG = re.compile(r"--([a-z][a-z0-9-]*)(?:=(.*))?$", re.DOTALL)
_HEREDOC = re.compile(r"(?<![<\w])(?P<fd>\d*)<<(?P<dash>-?)(?P<quote>[\"']?)(?P<name>[A-Za-z_][A-Za-z0-9_.]*)(?P=quote)")


@dataclass(frozen=True)
class Document:
    """A here-document. `expand`: variables in it are filled in (its word was not quoted)."""

    name: str
    text: str
    expand: bool


@dataclass(frozen=True)
class Instruction:
    """One instruction. `rest`: what follows its word and flags, continued lines joined. `flags` in their order, since a RUN may have several of a kind."""

    word: str
    rest: str
    line: int
    flags: tuple[tuple[str, str], ...] = ()
    documents: tuple[Document, ...] = ()
    escape: str = field(default="\\", repr=False)

    def flag(self, name: str) -> str | None:
        """The last of that name."""
        return next((value for key, value in reversed(self.flags) if key == name), None)

    def only(self, *names: str) -> None:
        """Raises `InvalidArgument` when it has a flag that is none of these."""
        for key, _ in self.flags:
            if key not in names:
                raise self.wrong(f"unknown flag --{key}")

    def wrong(self, why: str, *, hint: str | None = None) -> InvalidArgument:
        return InvalidArgument(f"Dockerfile line {self.line}: {self.word}: {why}", hint=hint, details={"line": self.line})


def parse(text: str) -> list[Instruction]:
    """Raises `InvalidArgument`, which names the line."""
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")
    escape = _directives(lines).get("escape", "\\")
    if escape not in ("\\", "`"):
        raise InvalidArgument(f"Dockerfile: escape={escape} is neither a backslash nor a backtick")
    found = list(_instructions(lines, escape))
    if not found:
        raise InvalidArgument("the Dockerfile has no instruction", hint="it begins with FROM")
    return found


def _directives(lines: Sequence[str]) -> dict[str, str]:
    """Those at the top, before anything else."""
    found: dict[str, str] = {}
    for line in lines:
        match = _DIRECTIVE.match(line.strip())
        if match is None:
            break
        found[match[1].lower()] = match[2]
    return found


def _instructions(lines: Sequence[str], escape: str) -> Iterator[Instruction]:
    at = 0
    while at < len(lines):
        first = at
        if not lines[at].strip() or lines[at].lstrip().startswith("#"):
            at += 1
            continue
        joined, at = _joined(lines, at, escape)
        split = re.match(r"(\S+)\s*(.*)", joined.lstrip(), re.DOTALL)
        assert split is not None
        word, rest = split[1].upper(), split[2].strip()
        if word not in KNOWN:
            raise InvalidArgument(f"Dockerfile line {first + 1}: unknown instruction {split[1][:40]!r}", details={"line": first + 1})
        flags, rest = _flags(rest) if word in _WITH_FLAGS else ((), rest)
        documents: list[Document] = []
        if word in _WITH_DOCUMENTS or (word == "ONBUILD" and re.match(r"(ADD|COPY|RUN)\b", rest, re.IGNORECASE)):
            for match in _HEREDOC.finditer(_unquoted(rest)):
                document, at = _document(lines, at, match, first)
                documents.append(document)
        instruction = Instruction(word, rest, first + 1, flags, tuple(documents), escape)
        if not rest and word not in ("CMD", "ENTRYPOINT"):
            raise instruction.wrong("says nothing")
        yield instruction


def _joined(lines: Sequence[str], at: int, escape: str) -> tuple[str, int]:
    """A line with those that continue it, comments and empty lines between left out; and the number of the next."""
    parts: list[str] = []
    ending = re.compile(re.escape(escape) + r"[ \t]*$")
    while at < len(lines):
        line = lines[at]
        at += 1
        if parts and (line.lstrip().startswith("#") or not line.strip()):
            continue
        if ending.search(line) is None:
            parts.append(line)
            break
        parts.append(ending.sub("", line))
    return "".join(parts), at


def _flags(rest: str) -> tuple[tuple[tuple[str, str], ...], str]:
    found: list[tuple[str, str]] = []
    while rest.startswith("--"):
        word = re.match(r"(?:\\.|\"[^\"]*\"|\S)+", rest, re.DOTALL)
        assert word is not None
        match = _FLAG.match(word[0])
        if match is None:
            break
        found.append((match[1], (match[2] or "").replace('"', "")))
        rest = rest[word.end() :].lstrip()
        if word[0] == "--":
            break
    return tuple(found), rest


def _unquoted(text: str) -> str:
    """With what is quoted blanked out, but for the word of a here-document, which may be."""

    def blank(match: re.Match[str]) -> str:
        return match[0] if match.string[: match.start()].endswith(("<<", "<<-")) else "_" * len(match[0])

    return re.sub(r"\"(?:\\.|[^\"\\])*\"|'[^']*'", blank, text)


def _document(lines: Sequence[str], at: int, match: re.Match[str], first: int) -> tuple[Document, int]:
    body: list[str] = []
    while at < len(lines):
        line = lines[at].lstrip("\t") if match["dash"] else lines[at]
        at += 1
        if line == match["name"]:
            return Document(match["name"], "".join(f"{one}\n" for one in body), expand=not match["quote"]), at
        body.append(line)
    raise InvalidArgument(f"Dockerfile line {first + 1}: the here-document {match['name']} has no end", details={"line": first + 1})


def without_documents(rest: str) -> str:
    """What is left of an instruction when its here-documents' words are taken out."""
    return _HEREDOC.sub("", rest).strip()


def split(instruction: Instruction, text: str) -> list[str]:
    """At spaces outside quotes; quotes and escapes stay for the expansion."""
    found: list[str] = []
    current, quote, at = "", "", 0
    while at < len(text):
        character = text[at]
        if character == instruction.escape and quote != "'" and at + 1 < len(text):
            current += text[at : at + 2]
            at += 2
            continue
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character.isspace():
            if current:
                found.append(current)
            current = ""
            at += 1
            continue
        current += character
        at += 1
    if quote:
        raise instruction.wrong("a quote without an end")
    return [*found, current] if current else found
