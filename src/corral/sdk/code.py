"""What executions of code leave behind: values in all their forms, errors, text."""

from __future__ import annotations

from base64 import b64decode
from dataclasses import dataclass, field
from typing import Any

from corral.errors import CommandFailed
from corral.schema.code import CodeError, Status

DATA = "application/vnd.corral.data+json"
CHART = "application/vnd.corral.chart+json"
_TAIL = 4000
"""Characters of a traceback that an error message shows."""


@dataclass(frozen=True)
class Value:
    """Something that code gave back or displayed, in every form that it has. `mime` holds them by their type; binary ones as base64."""

    mime: dict[str, Any] = field(repr=False)
    main: bool = False
    """It is the value of the last expression."""
    omitted: dict[str, int] = field(default_factory=dict[str, int])
    """Forms that were left out for their size, and their size in characters."""

    def __repr__(self) -> str:
        return f"Value({self.text!r})" if self.text is not None else f"Value({', '.join(self.mime)})"

    def __str__(self) -> str:
        return self.text or ""

    @property
    def text(self) -> str | None:
        return self._word("text/plain")

    @property
    def html(self) -> str | None:
        return self._word("text/html")

    @property
    def markdown(self) -> str | None:
        return self._word("text/markdown")

    @property
    def latex(self) -> str | None:
        return self._word("text/latex")

    @property
    def svg(self) -> str | None:
        return self._word("image/svg+xml")

    @property
    def javascript(self) -> str | None:
        return self._word("application/javascript")

    @property
    def png(self) -> bytes | None:
        return self._binary("image/png")

    @property
    def jpeg(self) -> bytes | None:
        return self._binary("image/jpeg")

    @property
    def pdf(self) -> bytes | None:
        return self._binary("application/pdf")

    @property
    def json(self) -> Any:
        return self.mime.get("application/json")

    @property
    def data(self) -> dict[str, list[Any]] | None:
        """A table: its columns by their names."""
        return self.mime.get(DATA)

    @property
    def chart(self) -> dict[str, Any] | None:
        """What a chart shows: `type`, `title`, labels, and `elements` with their points."""
        return self.mime.get(CHART)

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, Any]:  # noqa: ARG002 - IPython's own words
        return self.mime

    def _word(self, kind: str) -> str | None:
        value = self.mime.get(kind)
        return value if value is None or isinstance(value, str) else "".join(map(str, value))

    def _binary(self, kind: str) -> bytes | None:
        value = self._word(kind)
        return None if value is None else b64decode(value)


@dataclass(frozen=True)
class Execution:
    """An execution that has ended. One that failed is like any other; `check()` makes it an error."""

    id: str
    context: str
    """The id of the context it was in."""
    status: Status
    results: list[Value]
    """What was displayed, and at last the value of the last expression, if it has one."""
    stdout: str
    stderr: str
    error: CodeError | None
    """What the code raised: `name`, `value`, `traceback`."""
    count: int | None
    """Its number in the context."""
    seconds: float
    dropped: int = 0
    """Bytes that are missing because more was said than the server keeps."""

    @property
    def value(self) -> Value | None:
        """The value of the last expression."""
        return next((value for value in self.results if value.main), None)

    @property
    def text(self) -> str | None:
        """The value of the last expression as text."""
        return None if self.value is None else self.value.text

    @property
    def ok(self) -> bool:
        return self.status is Status.OK

    def check(self) -> Execution:
        """Return self, or raise `CommandFailed` with the error in its message."""
        if self.ok:
            return self
        if self.error is None:
            raise CommandFailed(f"the code ended as {self.status}", result=self)
        trace = "\n".join(self.error.traceback)[-_TAIL:]
        raise CommandFailed(f"the code raised {self.error.name}: {self.error.value}" + (f"\n{trace}" if trace else ""), result=self)


class Gathering:
    """An execution under way, without I/O: takes its events, tells who listens, becomes the `Execution`."""

    def __init__(self) -> None:
        self.id = self.context = ""
        self.results: list[Value] = []
        self.stdout: list[str] = []
        self.stderr: list[str] = []
        self.error: CodeError | None = None
        self.dropped = 0

    def end(self, status: Status, *, count: int | None, seconds: float) -> Execution:
        return Execution(
            id=self.id,
            context=self.context,
            status=status,
            results=self.results,
            stdout="".join(self.stdout),
            stderr="".join(self.stderr),
            error=self.error,
            count=count,
            seconds=seconds,
            dropped=self.dropped,
        )
