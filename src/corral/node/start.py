"""What is asked of the guest to start a process, and what is written down of it before."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field

from corral.errors import InvalidArgument
from corral.node.journal import Asked
from corral.schema.process import ProcessStart
from corral.wire import requests


@dataclass(frozen=True)
class Defaults:
    """What a process gets unless it is asked for otherwise."""

    env: Mapping[str, str] = field(default_factory=dict[str, str])
    user: str | None = None
    workdir: str | None = None
    shell: tuple[str, ...] = ("/bin/sh", "-c")


def prepare(
    request: ProcessStart, defaults: Defaults, *, id: str, channel: int, at: float, environment: Mapping[str, str] | None = None
) -> tuple[Asked, requests.Start]:
    """Raises `InvalidArgument` for text that is none. The environment in `defaults` is not repeated: the guest got it when it was claimed.

    `environment`: what came later, over that and under what the request says.
    """
    argv = [*defaults.shell, request.command] if request.command is not None else request.argv or []
    cwd = defaults.workdir if request.cwd is None else posixpath.join(defaults.workdir or "/", request.cwd)
    asked = Asked(
        id=id,
        channel=channel,
        argv=[encoded(arg) for arg in argv],
        cwd=None if cwd is None else encoded(cwd),
        user=defaults.user if request.user is None else request.user,
        tag=request.tag,
        pty=request.pty is not None,
        stdin=request.stdin or request.pty is not None,
        at=at,
        timeout=request.timeout,
    )
    start = requests.Start(
        channel=channel,
        id=id,
        argv=asked.argv,
        env=[encoded(f"{name}={value}") for name, value in {**(environment or {}), **request.env}.items()],
        cwd=asked.cwd,
        user=asked.user,
        pty=None if request.pty is None else requests.Size(request.pty.rows, request.pty.cols),
        stdin=asked.stdin,
    )
    return asked, start


def encoded(text: str) -> bytes:
    """The bytes a guest sees: UTF-8, and odd bytes that Python keeps as lone surrogates as they were."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise InvalidArgument("text with lone surrogates is not text", hint="pass bytes as Python's os.fsdecode gives them") from None
