"""An image's configuration: how its processes start. Steps change it without touching a file; OCI has its own words for it."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, cast

from corral.node.interface import ImageSpec
from corral.schema.image import SetCommand, SetEnv, SetExposed, SetLabels, SetNotes, SetStart, SetUser, SetWorkdir

Setting = SetEnv | SetWorkdir | SetUser | SetCommand | SetLabels | SetExposed | SetStart | SetNotes


@dataclass(frozen=True)
class ImageConfig:
    """`notes`: what is recorded and has no effect here: health check, stop signal, volumes, ONBUILD."""

    env: Mapping[str, str] = field(default_factory=dict[str, str])
    user: str | None = None
    workdir: str | None = None
    entrypoint: tuple[str, ...] | None = None
    command: tuple[str, ...] | None = None
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    exposed: tuple[str, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    start: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, spec: ImageSpec) -> ImageConfig:
        """Of an image about which nothing more is known."""
        return cls(env=dict(spec.env), user=spec.user, workdir=spec.workdir, command=spec.command)

    def apply(self, step: Setting) -> ImageConfig:
        """What it is after a step."""
        match step:
            case SetEnv():
                return replace(self, env={**self.env, **step.env})
            case SetWorkdir():
                return replace(self, workdir=self.absolute(step.path))
            case SetUser():
                return replace(self, user=step.user)
            case SetCommand():
                entrypoint = self.entrypoint if step.entrypoint is None else tuple(step.entrypoint) or None
                # As Docker has it: another entrypoint forgets the command of the one before.
                inherited = None if step.entrypoint is not None else self.command
                return replace(self, entrypoint=entrypoint, command=inherited if step.command is None else tuple(step.command) or None)
            case SetLabels():
                return replace(self, labels={**self.labels, **step.labels})
            case SetExposed():
                ports = [port if "/" in port else f"{port}/tcp" for port in step.ports]
                return replace(self, exposed=tuple(dict.fromkeys((*self.exposed, *ports))))
            case SetStart():
                return replace(self, start=step.model_dump(mode="json"))
            case SetNotes():
                return replace(self, notes={**self.notes, **step.notes})

    def absolute(self, path: str) -> str:
        """A path as seen from the working directory, without `.` and `..`."""
        whole = posixpath.normpath(posixpath.join("/", self.workdir or "/", path))
        return "/" + whole.lstrip("/")

    @property
    def argv(self) -> tuple[str, ...] | None:
        """Entrypoint and command together."""
        return (*(self.entrypoint or ()), *(self.command or ())) or None

    def spec(self, of: ImageSpec) -> ImageSpec:
        """The same files with these defaults."""
        return replace(of, env=dict(self.env), user=self.user, workdir=self.workdir, command=self.argv)

    def encode(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def decode(cls, text: str) -> ImageConfig:
        given = json.loads(text)
        for name in ("entrypoint", "command", "exposed"):
            given[name] = None if given[name] is None else tuple(given[name])
        return cls(**given)

    # OCI's words (image-spec, config.md)

    @classmethod
    def from_oci(cls, config: Mapping[str, Any]) -> ImageConfig:
        """Of an image configuration's `config`. What has the wrong type is left out: it has no effect on files."""
        pairs = [pair.partition("=") for pair in _texts(config.get("Env"))]
        notes = {name: config[name] for name in ("Healthcheck", "StopSignal", "Volumes", "OnBuild", "Shell") if config.get(name)}
        return cls(
            env={name: value for name, equals, value in pairs if name and equals},
            user=config.get("User") or None,
            workdir=config.get("WorkingDir") or None,
            entrypoint=tuple(_texts(config.get("Entrypoint"))) or None,
            command=tuple(_texts(config.get("Cmd"))) or None,
            labels={key: str(value) for key, value in _mapping(config.get("Labels")).items()},
            exposed=tuple(_mapping(config.get("ExposedPorts"))),
            notes=notes,
        )

    def to_oci(self) -> dict[str, Any]:
        """An image configuration's `config`."""
        found: dict[str, Any] = {
            "User": self.user,
            "ExposedPorts": {port: {} for port in self.exposed},
            "Env": [f"{name}={value}" for name, value in self.env.items()],
            "Entrypoint": self.entrypoint,
            "Cmd": self.command,
            "WorkingDir": self.workdir,
            "Labels": dict(self.labels),
            **{name: value for name, value in self.notes.items() if name in ("Healthcheck", "StopSignal", "Volumes", "OnBuild", "Shell")},
        }
        return {name: value for name, value in found.items() if value}


def _texts(value: Any) -> Sequence[str]:
    return [one for one in cast("list[object]", value) if isinstance(one, str)] if isinstance(value, list) else []


def _mapping(value: Any) -> Mapping[str, Any]:
    return {str(key): one for key, one in cast("dict[object, Any]", value).items()} if isinstance(value, dict) else {}
