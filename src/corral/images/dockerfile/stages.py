"""The stages of a Dockerfile: what each starts from, which of them the last one needs, and the steps of each."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from corral.errors import InvalidArgument, Unsupported
from corral.images.config import ImageConfig
from corral.images.dockerfile.instructions import PROXIES, Translation
from corral.images.dockerfile.syntax import Instruction, parse, split
from corral.images.dockerfile.words import expand
from corral.schema.image import Step

_FROM = re.compile(r"(\S+)(?:\s+AS\s+(\S+))?$", re.IGNORECASE)
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "riscv64": "riscv64", "ppc64le": "ppc64le", "s390x": "s390x"}


def machine_platform() -> str:
    """Of this machine, in OCI's words: `linux/amd64`."""
    return "linux/" + _MACHINES.get(platform.machine(), platform.machine())


@dataclass
class Stage:
    """`base` and `images` are names of stages before, or images to be got."""

    name: str
    base: str
    instructions: list[Instruction] = field(default_factory=list[Instruction])
    images: list[str] = field(default_factory=list[str])


class Stages:
    """Those of one Dockerfile, with the arguments of one build. Raises `InvalidArgument`, `Unsupported`."""

    def __init__(self, text: str, args: Mapping[str, str], *, target: str | None, context: str | None) -> None:
        self.warnings: list[str] = []
        self._args = args
        self._context = context
        self._outside: dict[str, str] = {}
        here = machine_platform()
        system, _, machine = here.partition("/")
        self._predefined = {
            f"{side}{what}": value for side in ("TARGET", "BUILD") for what, value in (("PLATFORM", here), ("OS", system), ("ARCH", machine), ("VARIANT", ""))
        }
        self._declared = set(PROXIES)
        self._all: list[Stage] = []
        self._aliases: dict[str, str] = {}
        for instruction in parse(text):
            self._read(instruction)
        if not self._all:
            raise InvalidArgument("the Dockerfile has no FROM", hint="it begins with FROM, after ARGs if there are any")
        for stage in self._all:
            self._look_around(stage)
        self.last = self._all[-1] if target is None else self._by_name(target)
        unknown = sorted(set(args) - self._declared)
        if unknown:
            self.warnings.append(f"build arguments that no ARG takes: {', '.join(unknown)}")

    def _read(self, instruction: Instruction) -> None:
        if instruction.word == "FROM":
            self._begin(instruction)
        elif self._all:
            self._all[-1].instructions.append(instruction)
            if instruction.word == "ARG":
                self._declared |= {word.partition("=")[0] for word in split(instruction, instruction.rest)}
        elif instruction.word == "ARG":
            for word in split(instruction, instruction.rest):
                name, equals, default = word.partition("=")
                if name in self._args:
                    self._outside[name] = self._args[name]
                elif equals:
                    self._outside[name] = self._expanded(instruction, default)
                self._declared.add(name)
        else:
            raise instruction.wrong("stands before FROM")

    def _begin(self, instruction: Instruction) -> None:
        instruction.only("platform")
        if (wanted := self._expanded(instruction, instruction.flag("platform") or "")) and wanted.split("/")[:2] != machine_platform().split("/"):
            raise Unsupported(f"Dockerfile line {instruction.line}: stages for {wanted} can't be run here", hint=f"this machine is {machine_platform()}")
        match = _FROM.match(instruction.rest)
        if match is None:
            raise instruction.wrong(f"{instruction.rest[:80]!r} is not understood", hint="FROM image [AS name]")
        base = self._expanded(instruction, match[1])
        if not base:
            raise instruction.wrong(f"{match[1]} is empty", hint="give its ARG a value before FROM")
        name = f"stage {len(self._all)}"
        self._all.append(Stage(name, self._aliases.get(base.lower(), base)))
        self._aliases[str(len(self._all) - 1)] = name
        if match[2]:
            self._aliases[match[2].lower()] = name

    def _expanded(self, instruction: Instruction, text: str) -> str:
        return expand(text, {**self._predefined, **self._outside}, escape=instruction.escape)

    def _other(self, name: str) -> str:
        return self._aliases.get(name.lower(), name)

    def _look_around(self, stage: Stage) -> None:
        """What it takes files from. Names with variables are known only when it is built; they are images of build arguments mostly."""
        for instruction in stage.instructions:
            origins = [instruction.flag("from")] if instruction.word == "COPY" else []
            origins += [part[5:] for key, value in instruction.flags if key == "mount" for part in value.split(",") if part.startswith("from=")]
            for origin in origins:
                if origin:
                    stage.images.append(self._other(expand(origin, {**self._predefined, **self._outside}, escape=instruction.escape)))

    def _by_name(self, name: str) -> Stage:
        wanted = self._aliases.get(name.lower())
        if wanted is None:
            raise InvalidArgument(f"the Dockerfile has no stage {name[:80]!r}", hint="FROM … AS name gives one its name")
        return next(stage for stage in self._all if stage.name == wanted)

    def needed(self) -> list[Stage]:
        """The last stage and all that it needs, in their order."""
        by_name = {stage.name: stage for stage in self._all}
        wanted, todo = set[str](), [self.last.name]
        while todo:
            name = todo.pop()
            if name in by_name and name not in wanted:
                wanted.add(name)
                todo += [by_name[name].base, *by_name[name].images]
        return [stage for stage in self._all if stage.name in wanted]

    def steps(self, stage: Stage, config: ImageConfig) -> list[Step]:
        """Of a stage, on a base with this configuration."""
        translation = Translation(
            config,
            args=self._args,
            outside=self._outside,
            predefined=self._predefined,
            context=self._context,
            other=self._other,
            warn=self.warnings.append,
        )
        translation.inherit()
        for instruction in stage.instructions:
            translation.take(instruction)
        return translation.steps
