"""Processes of a sandbox and their streams."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import Field, model_validator

from corral.schema.model import Answer, Request
from corral.schema.sandbox import Env

Arg = Annotated[str, Field(pattern=r"^[^\x00]*$")]


class Stream(StrEnum):
    """The output streams. A process with a terminal has only `stdout`."""

    STDOUT = "stdout"
    STDERR = "stderr"


class Terminal(Request):
    """Size of a pseudo-terminal, in characters."""

    rows: int = Field(24, ge=1, le=4096)
    cols: int = Field(80, ge=1, le=4096)


class ProcessStart(Request):
    """POST /v1/sandboxes/{id}/processes. Either `argv`, or `command` for the image's shell (`/bin/sh -c`)."""

    argv: list[Arg] | None = Field(None, min_length=1, max_length=65_536)
    command: Arg | None = Field(None, min_length=1)
    env: Env = Field(default_factory=dict)
    cwd: str | None = Field(None, max_length=4096)
    user: str | None = Field(None, max_length=256)
    stdin: bool = Field(False, description="false: standard input is empty")
    pty: Terminal | None = None
    timeout: float | None = Field(None, gt=0, le=31_536_000, allow_inf_nan=False, description="seconds until the process and all it started are killed")
    tag: str | None = Field(None, max_length=256, description="a word of the caller's to find it by")

    @model_validator(mode="after")
    def _one_of(self) -> ProcessStart:
        if (self.argv is None) == (self.command is None):
            raise ValueError("give either argv or command")
        return self


class Process(Answer):
    """A command started in a sandbox."""

    id: str
    sandbox: str
    argv: list[str]
    cwd: str | None
    user: str | None
    tag: str | None
    pty: bool
    stdin: bool
    pid: int | None = Field(None, description="inside the sandbox; never an identity")
    running: bool
    exit_code: int | None = Field(None, description="128 + signal when a signal ended it; null while it runs")
    signal: int | None = None
    timed_out: bool = False
    lost: bool = Field(False, description="the sandbox ended under it, so that no exit status exists")
    started_at: datetime
    ended_at: datetime | None = None
    duration: float | None = Field(None, description="seconds, as measured inside the sandbox")
    stdout_offset: int = Field(0, description="bytes written so far")
    stderr_offset: int = 0
    stdout_start: int = Field(0, description="the oldest byte still kept; more than 0 after a flood")
    stderr_start: int = 0
    stdin_offset: int = Field(0, description="bytes accepted so far")


class Processes(Answer):
    """GET /v1/sandboxes/{id}/processes."""

    processes: list[Process]


class Output(Answer):
    """`data` of the `output` events of GET …/processes/{id}/output (server-sent events). The event's id is `{stdout}:{stderr}`, the offsets after it."""

    stream: Stream
    offset: int = Field(description="of the first byte of `data`")
    data: str = Field(description="base64")
    dropped: int = Field(0, description="bytes before `offset` that are gone because the process wrote more than is kept")


class Signal(Request):
    """POST …/processes/{id}/signal."""

    signal: int = Field(15, ge=1, le=64)
    to: Annotated[str, Field(pattern="^(process|group|tree)$")] = "group"


class StdinAnswer(Answer):
    """Answer to a write on standard input: the offset of the next byte."""

    offset: int
