"""What the instructions of one stage are as steps. What is not done here is said: in an error, or in a warning where it changes nothing in the image's files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar, cast

from corral.errors import InvalidArgument, Unsupported
from corral.images.config import ImageConfig, Setting
from corral.images.dockerfile.mounts import mounts
from corral.images.dockerfile.syntax import Document, Instruction, parse, split, without_documents
from corral.images.dockerfile.words import expand
from corral.schema.image import (
    Bind,
    Copy,
    InlineFile,
    Run,
    SetCommand,
    SetEnv,
    SetExposed,
    SetLabels,
    SetNotes,
    SetUser,
    SetWorkdir,
    Step,
)

S = TypeVar("S", Copy, Bind)

PROXIES = frozenset(name for plain in ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY") for name in (plain, plain.lower()))
"""Build arguments that need no ARG."""
_REMOTE = re.compile(r"(https?|ftp)://|git@|git://")
_SHELL = ("/bin/sh", "-c")
_DURATIONS = {"interval": "Interval", "timeout": "Timeout", "start-period": "StartPeriod", "start-interval": "StartInterval"}
"""Options of HEALTHCHECK that are durations, and what an image's configuration calls them."""
_UNITS = {"h": 3600 * 10**9, "m": 60 * 10**9, "s": 10**9, "ms": 10**6, "us": 10**3, "µs": 10**3, "ns": 1}
_END = "CORRAL_END_OF_SCRIPT"


class Translation:
    """One stage. `args`: build arguments given; `outside`: those of before the first FROM; `other` tells whether a name is a stage or an image to be got."""

    def __init__(
        self,
        config: ImageConfig,
        *,
        args: Mapping[str, str],
        outside: Mapping[str, str],
        predefined: Mapping[str, str],
        context: str | None,
        other: Callable[[str], str],
        warn: Callable[[str], None],
    ) -> None:
        self.steps: list[Step] = []
        self._config = config
        self._given = args
        self._outside = outside
        self._predefined = predefined
        self._context = context
        self._other = other
        self._warn = warn
        self._args: dict[str, str] = {name: value for name, value in args.items() if name in PROXIES}
        shell = config.notes.get("Shell")
        self._shell: tuple[str, ...] = tuple(cast("list[str]", shell)) if isinstance(shell, list) and shell else _SHELL
        self._command_is_ours = False

    def inherit(self) -> None:
        """Do first what the image below wants done in those that are made of it (ONBUILD)."""
        triggers = self._config.notes.get("OnBuild")
        if isinstance(triggers, list) and triggers:
            self._set(SetNotes(notes={"OnBuild": []}))
            for instruction in parse("\n".join(map(str, cast("list[object]", triggers)))):
                self.take(instruction)

    def take(self, instruction: Instruction) -> None:
        """Raises `InvalidArgument`, `Unsupported`."""
        match instruction.word:
            case "RUN":
                self.steps.append(self._run(instruction))
            case "COPY" | "ADD":
                self.steps.append(self._copy(instruction))
            case "ENV":
                self._set(SetEnv(env=self._pairs(instruction)))
            case "LABEL":
                self._set(SetLabels(labels=self._pairs(instruction)))
            case "ARG":
                self._declare(instruction)
            case "WORKDIR":
                self._set(SetWorkdir(path=self._text(instruction)))
            case "USER":
                self._set(SetUser(user=self._text(instruction)))
            case "CMD" | "ENTRYPOINT":
                self._command(instruction)
            case "EXPOSE":
                self._set(SetExposed(ports=[port for word in instruction.rest.split() for port in _ports(instruction, self._expand(instruction, word))]))
            case "SHELL":
                found = _json(instruction.rest)
                if not found:
                    raise instruction.wrong('takes a JSON list, such as ["/bin/bash", "-c"]')
                self._shell = tuple(found)
                self._set(SetNotes(notes={"Shell": found}))
            case "STOPSIGNAL":
                self._set(SetNotes(notes={"StopSignal": self._text(instruction)}))
            case "HEALTHCHECK":
                self._set(SetNotes(notes={"Healthcheck": self._health(instruction)}))
            case "VOLUME":
                self._volume(instruction)
            case "ONBUILD":
                self._on_build(instruction)
            case "MAINTAINER":
                self._set(SetLabels(labels={"maintainer": instruction.rest}))
            case _:
                raise instruction.wrong("has no place in a stage")

    # Settings

    def _set(self, step: Setting) -> None:
        self._config = self._config.apply(step)
        self.steps.append(step)

    def _declare(self, instruction: Instruction) -> None:
        for word in split(instruction, instruction.rest):
            name, equals, default = word.partition("=")
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise instruction.wrong(f"{name[:40]!r} is no name")
            if name in self._given:
                self._args[name] = self._given[name]
            elif equals:
                self._args[name] = self._expand(instruction, default)
            elif name in self._outside:
                self._args[name] = self._outside[name]
            elif name in self._predefined:
                self._args[name] = self._predefined[name]

    def _pairs(self, instruction: Instruction) -> dict[str, str]:
        """`key=value key="other value"`, or the old `key all the rest`."""
        rest = instruction.rest
        if not re.match(r"(\"[^\"]+\"|'[^']+'|[^\s=\"']+)=", rest):
            key, _, value = rest.partition(" ")
            if not value.strip():
                raise instruction.wrong(f"{key[:60]!r} has no value")
            return {self._expand(instruction, key): self._expand(instruction, value.strip())}
        found: dict[str, str] = {}
        for word in split(instruction, rest):
            key, equals, value = word.partition("=")
            if not equals:
                raise instruction.wrong(f"{word[:60]!r} is not key=value")
            found[self._expand(instruction, key)] = self._expand(instruction, value)
        return found

    def _command(self, instruction: Instruction) -> None:
        found = _json(instruction.rest)
        argv = found if found is not None else [*self._shell, instruction.rest] if instruction.rest else []
        if instruction.word == "CMD":
            self._command_is_ours = True
            self._set(SetCommand(command=argv))
        else:
            kept = list(self._config.command or ()) if self._command_is_ours else None
            self._set(SetCommand(entrypoint=argv, command=kept))

    def _health(self, instruction: Instruction) -> dict[str, object]:
        """As Docker has it; it is recorded only."""
        instruction.only(*_DURATIONS, "retries")
        word, _, rest = instruction.rest.partition(" ")
        if word.upper() == "NONE":
            return {"Test": ["NONE"]}
        if word.upper() != "CMD":
            raise instruction.wrong("takes NONE or CMD")
        found = _json(rest.strip())
        options: dict[str, int] = {_DURATIONS[key]: _nanoseconds(instruction, value) for key, value in instruction.flags if key in _DURATIONS}
        if (retries := instruction.flag("retries")) is not None:
            if not retries.isdecimal():
                raise instruction.wrong(f"--retries={retries[:40]} is no number")
            options["Retries"] = int(retries)
        return {"Test": ["CMD", *found] if found is not None else ["CMD-SHELL", rest.strip()], **options}

    def _volume(self, instruction: Instruction) -> None:
        paths = _json(instruction.rest)
        paths = paths if paths is not None else instruction.rest.split()
        known = cast("dict[str, object]", self._config.notes.get("Volumes") or {})
        self._set(SetNotes(notes={"Volumes": {**known, **{self._expand(instruction, path): {} for path in paths}}}))
        self._warn(f"line {instruction.line}: VOLUME is recorded; its files are on the sandbox's disk like all others, unless a volume is attached there")

    def _on_build(self, instruction: Instruction) -> None:
        inner = parse(instruction.rest + "".join(f"\n{document.text}{document.name}" for document in instruction.documents))[0]
        if inner.word in ("ONBUILD", "FROM", "MAINTAINER"):
            raise instruction.wrong(f"can't hold {inner.word}")
        known = cast("list[str]", self._config.notes.get("OnBuild") or [])
        self._set(SetNotes(notes={"OnBuild": [*known, instruction.rest]}))

    # Files

    def _run(self, instruction: Instruction) -> Run:
        instruction.only("mount", "network", "security")
        if (instruction.flag("network") or "default") != "default" or (instruction.flag("security") or "sandbox") != "sandbox":
            raise Unsupported(
                f"Dockerfile line {instruction.line}: RUN --network and --security can't be chosen for one command",
                hint="the build's egress policy decides for all of them",
            )
        found = mounts(
            instruction, lambda text: self._expand(instruction, text), lambda target, source, of: self._bind(instruction, target, source, of), self._warn
        )
        environment = {name: value for name, value in self._args.items() if name not in self._config.env}
        argv = _json(instruction.rest)
        command: str | list[str] = argv if argv else self._script(instruction)
        shell = None if argv or self._shell == _SHELL else list(self._shell)
        return Run(command=command, shell=shell, env=environment, caches=found.caches, secrets=found.secrets, binds=found.binds)

    def _script(self, instruction: Instruction) -> str:
        """A command for the shell, its here-documents behind it; one that is nothing but a here-document is that document."""
        if not instruction.documents:
            return instruction.rest
        if not without_documents(instruction.rest):
            text = instruction.documents[0].text
            return _with_interpreter(text) if text.startswith("#!") else text
        return instruction.rest + "".join(f"\n{document.text}{document.name}" for document in instruction.documents) + "\n"

    def _bind(self, instruction: Instruction, target: str, source: str, of: str | None) -> Bind:
        if of is not None:
            return _staged(Bind(target=target, source=source), self._other(of))
        return Bind(target=target, source=source, upload=self._needed_context(instruction))

    def _copy(self, instruction: Instruction) -> Copy:
        known = ("chown", "chmod", "link", "exclude", *(("from", "parents") if instruction.word == "COPY" else ()))
        instruction.only(*known)
        listed = _json(instruction.rest)
        given = listed if listed is not None else split(instruction, instruction.rest)
        expanded = [word if _is_document(word) else self._expand(instruction, word) for word in given]
        if len(expanded) < 2:
            raise instruction.wrong("takes sources and a target")
        *sources, target = expanded
        documents = {document.name: document for document in instruction.documents}
        files = [InlineFile(name=name, text=self._filled(instruction, documents[name])) for word in sources if (name := _document_name(word)) in documents]
        sources = [word for word in sources if _document_name(word) not in documents]
        if remote := next((word for word in sources if _REMOTE.match(word)), None):
            raise Unsupported(
                f"Dockerfile line {instruction.line}: {instruction.word} {remote[:100]} would fetch it outside a sandbox", hint="use RUN curl -fLO …"
            )
        origin = instruction.flag("from")
        mode = instruction.flag("chmod")
        if mode is not None and not re.fullmatch(r"0?[0-7]{3,4}", mode := self._expand(instruction, mode)):
            raise Unsupported(f"Dockerfile line {instruction.line}: --chmod={mode[:40]} is not octal", hint="write it like --chmod=755")
        owner = instruction.flag("chown")
        step = Copy(
            sources=sources or [],
            target=target,
            upload=self._needed_context(instruction) if sources and origin is None else None,
            stage="" if sources and origin is not None else None,
            files=files,
            owner=None if owner is None else self._expand(instruction, owner),
            mode=None if mode is None else int(mode, 8),
            unpack=instruction.word == "ADD",
            exclude=[self._expand(instruction, value) for key, value in instruction.flags if key == "exclude"],
            parents=(instruction.flag("parents") or "false") != "false" or any(key == "parents" and not value for key, value in instruction.flags),
        )
        return step if origin is None or not sources else _staged(step, self._other(self._expand(instruction, origin)))

    def _needed_context(self, instruction: Instruction) -> str:
        if self._context is None:
            raise InvalidArgument(f"Dockerfile line {instruction.line}: {instruction.word} needs files, and no context was given", hint="name its directory")
        return self._context

    def _filled(self, instruction: Instruction, document: Document) -> str:
        return expand(document.text, self._values(), escape=instruction.escape, quotes=False) if document.expand else document.text

    # Words

    def _values(self) -> dict[str, str]:
        return {**self._args, **self._config.env}

    def _expand(self, instruction: Instruction, text: str) -> str:
        try:
            return expand(text, self._values(), escape=instruction.escape)
        except InvalidArgument as error:
            raise instruction.wrong(error.message, hint=error.hint) from None

    def _text(self, instruction: Instruction) -> str:
        found = self._expand(instruction, instruction.rest)
        if not found:
            raise instruction.wrong(f"{instruction.rest[:60]!r} is empty")
        return found


def _staged(step: S, name: str) -> S:
    """Taking its files from a stage."""
    return step.model_copy(update={"stage": name})


def _json(text: str) -> list[str] | None:
    """A JSON list of texts; None for anything else, which is words for a shell then."""
    if not text.startswith("["):
        return None
    try:
        found = json.loads(text)
    except ValueError:
        return None
    listed = cast("list[object]", found) if isinstance(found, list) else [None]
    return [one for one in listed if isinstance(one, str)] if all(isinstance(one, str) for one in listed) else None


def _is_document(word: str) -> bool:
    return word.startswith("<<")


def _document_name(word: str) -> str:
    return word.removeprefix("<<").removeprefix("-").strip("\"'") if _is_document(word) else ""


def _with_interpreter(text: str) -> str:
    """A script with `#!`: it lies in a file while its interpreter reads it."""
    first = text.split("\n", 1)[0][2:].strip()
    return f"s=/dev/.corral-script\ncat >$s <<'{_END}'\n{text}{_END}\n{first} $s\nc=$?\nrm -f $s\nexit $c\n"


def _nanoseconds(instruction: Instruction, text: str) -> int:
    """Of a duration as Go writes it: `1m30s`."""
    parts = re.findall(r"(\d+(?:\.\d+)?)(h|ms|us|µs|ns|m|s)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise instruction.wrong(f"{text[:40]!r} is no duration", hint="write it like 30s or 1m30s")
    return round(sum(float(number) * _UNITS[unit] for number, unit in parts))


def _ports(instruction: Instruction, word: str) -> Sequence[str]:
    match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?(/(?:tcp|udp))?", word.lower())
    if match is None:
        raise instruction.wrong(f"{word[:40]!r} is no port")
    first, last = int(match[1]), int(match[2] or match[1])
    if not 0 < first <= last <= 65_535 or last - first > 1000:
        raise instruction.wrong(f"{word[:40]!r} is no port")
    return [f"{port}{match[3] or ''}" for port in range(first, last + 1)]
