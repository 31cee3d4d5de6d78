"""What an image is made of, before anything is built: a source, steps, and the local files that they take. Values: every change makes another one."""

from __future__ import annotations

import hashlib
import json
import posixpath
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from corral.errors import InvalidArgument
from corral.schema.image import Definition, Ready, SetStart
from corral.sdk import faults
from corral.sdk.context import LocalArchive, LocalFiles

Upload = LocalFiles | LocalArchive
Given = Mapping[str, Any]
_APT = "apt-get update && apt-get install -y --no-install-recommends {} && rm -rf /var/lib/apt/lists/*"


@dataclass(frozen=True)
class Attached:
    """Local files that every new sandbox gets when it is created."""

    files: LocalFiles
    target: str


@dataclass(frozen=True)
class Recipe:
    """`source` and `steps` in the API's words, but for local files (`upload`) and other recipes (`image`), which become words when it is written out."""

    source: Given
    steps: tuple[Given, ...] = ()
    attached: tuple[Attached, ...] = field(default=())

    def step(self, do: str, **words: Any) -> Recipe:
        """One step more; what is None is left out."""
        given = {name: value for name, value in words.items() if value is not None}
        return replace(self, steps=(*self.steps, {"do": do, **given}))

    def attach(self, files: LocalFiles, target: str) -> Recipe:
        return replace(self, attached=(*self.attached, Attached(files, _absolute(target))))

    def write(self) -> tuple[Definition, dict[str, Upload]]:
        """The definition, and by their digests the files it needs. Reads all of them. Raises `FileNotFound`, `InvalidArgument`."""
        uploads: dict[str, Upload] = {}
        words = self._words(uploads)
        return faults.build(Definition, **words), uploads

    def _words(self, uploads: dict[str, Upload]) -> dict[str, Any]:
        def word(value: Any) -> Any:
            match value:
                case LocalFiles() | LocalArchive():
                    digest = value.digest()
                    uploads[digest] = value
                    return digest
                case Recipe():
                    return value._words(uploads)
                case _:
                    return value

        return {
            "source": {name: word(value) for name, value in self.source.items()},
            "steps": [{name: word(value) for name, value in step.items()} for step in self.steps],
        }

    def digest(self) -> str:
        """Of everything that is said and of all local files: equal recipes make equal images of one source."""
        definition, _ = self.write()
        return hashlib.sha256(json.dumps(definition.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def apt(packages: Sequence[str]) -> str:
    return _APT.format(shlex.join(packages))


def python_is(version: str) -> str:
    """A command that fails unless the image's Python is of this version."""
    check = f"import sys; v = '.'.join(map(str, sys.version_info[:3])); sys.exit(0 if (v + '.').startswith('{version}.') else 'the release has Python ' + v)"
    return shlex.join(["python3", "-c", check])


def place(files: LocalFiles, target: str) -> tuple[list[str], str]:
    """Sources and target of a copy: of a directory what is in it, of a file itself, into the target if that ends with a slash."""
    return ["." if files.is_directory else files.path.name], target


def started(command: str | Sequence[str], ready: Ready | Mapping[str, Any] | None, *, warm: bool = False) -> dict[str, Any]:
    """The words of `start`. Raises `InvalidArgument`."""
    probe = ready if ready is None or isinstance(ready, Ready) else faults.build(Ready, **ready)
    words: dict[str, Any] = {"command": command if isinstance(command, str) else list(command)}
    faults.build(SetStart, **words)
    words |= {"warm": True} if warm else {}
    return words | ({} if probe is None else {"ready": probe.model_dump(mode="json", exclude_unset=True)})


def local(path: str | Path, ignore: Sequence[str] = ()) -> LocalFiles:
    return LocalFiles(Path(path).expanduser().absolute(), tuple(ignore))


def _absolute(path: str) -> str:
    if not posixpath.isabs(path):
        raise InvalidArgument(f"{path!r} is not absolute", hint="say where in the sandbox the files are to be")
    return path


Print = Callable[[str], object]
