"""The code interpreter: contexts that keep their variables, and executions of code in them."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field, model_validator

from corral.schema.model import Answer, Request

Language = Annotated[str, Field(min_length=1, max_length=32, pattern=r"^[a-z][a-z0-9+#_-]*$")]
CodeEnv = Annotated[
    dict[Annotated[str, Field(max_length=256, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], Annotated[str, Field(max_length=131_072, pattern=r"^[^\x00]*$")]],
    Field(max_length=256),
]


class Status(StrEnum):
    """How an execution ended."""

    OK = "ok"
    ERROR = "error"
    """The code raised an error."""
    TIMEOUT = "timeout"
    """It ran longer than it was given, and was interrupted; where it did not heed that, its kernel was ended, and the variables are gone."""
    INTERRUPTED = "interrupted"
    """It was asked to stop, or its client hung up."""
    RESTARTED = "restarted"
    """Its context was restarted or removed."""
    DIED = "died"
    """Its kernel ended under it: the variables are gone."""
    REFUSED = "refused"
    """Too many executions wait in its context."""


class CodeContextCreate(Request):
    """POST /v1/sandboxes/{id}/code/contexts."""

    language: Language = Field("python", description="python, bash, javascript, typescript, or another one that the image has a Jupyter kernel for")
    cwd: str | None = Field(None, max_length=4096, description="working directory; default: the sandbox's")


class CodeContext(Answer):
    """A kernel and its variables. It is a process of the sandbox, and has its id."""

    id: str
    language: str
    cwd: str | None
    default: bool = Field(description="the one that code runs in which names no context")
    created_at: datetime


class CodeContexts(Answer):
    """GET /v1/sandboxes/{id}/code/contexts, oldest first."""

    contexts: list[CodeContext]


class CodeRun(Request):
    """POST /v1/sandboxes/{id}/code/executions."""

    code: str = Field(max_length=2 << 20)
    context: str | None = Field(None, max_length=63, description="a context's id; default: the default context of the language")
    language: Language | None = Field(None, description="default: python. Not together with a context")
    env: CodeEnv = Field(default_factory=dict, description="for this execution alone")
    timeout: float | None = Field(None, gt=0, le=31_536_000, allow_inf_nan=False, description="seconds until it is interrupted")

    @model_validator(mode="after")
    def _one_of(self) -> CodeRun:
        if self.context is not None and self.language is not None:
            raise ValueError("give either a context or a language: a context has one")
        return self


class CodeBegin(Answer):
    """`data` of the event `execution`, the first one: it waits for its turn from now on."""

    execution: str
    context: str


class CodeText(Answer):
    """`data` of the events `stdout` and `stderr`."""

    text: str
    at: int = Field(description="when the kernel said it by the sandbox's clock, nanoseconds since 1970")


class CodeResult(Answer):
    """`data` of the event `result`: one value in all forms that it has."""

    main: bool = Field(description="it is the value of the last expression, not something displayed on the way")
    data: dict[str, Any] = Field(description="by MIME type: text, base64 of binary types, or the value of JSON types")
    omitted: dict[str, int] = Field(default_factory=dict, description="forms that are left out for their size, and their size in characters")


class CodeError(Answer):
    """`data` of the event `raised`: what the code raised."""

    name: str
    value: str
    traceback: list[str]


class CodeCount(Answer):
    """`data` of the event `count`: the number of the execution in its kernel."""

    count: int


class CodeDropped(Answer):
    """`data` of the event `dropped`: the reader was so slow that some of what happened is no longer kept."""

    bytes: int


class CodeEnd(Answer):
    """`data` of the event `end`, the last one."""

    status: Status
    seconds: float = Field(description="as measured inside the sandbox")
    count: int | None = None
    exit_code: int | None = Field(None, description="of the kernel, if it died; negative: the signal that ended it")


class CodeExecution(Answer):
    """An execution from its begin to its end: what POST …/executions answers when no event stream is asked for."""

    id: str
    context: str
    status: Status
    results: list[CodeResult]
    stdout: str
    stderr: str
    error: CodeError | None = None
    count: int | None = None
    seconds: float
    dropped: int = Field(0, description="bytes of events that are gone")
