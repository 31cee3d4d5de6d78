"""What a finished command left behind."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field

from corral.errors import CommandFailed

_TAIL = 4000
"""Characters of output that an error message shows."""


@dataclass(frozen=True)
class Result:
    """Output and end of a command. A failed command is a result like any other; `check()` makes it an error."""

    command: str | Sequence[str]
    stdout_bytes: bytes = field(repr=False)
    stderr_bytes: bytes = field(repr=False)
    exit_code: int
    """128 + the signal's number when a signal ended it."""
    duration: float
    """Seconds, as measured inside the sandbox."""
    signal: int | None = None
    dropped: int = 0
    """Bytes of output that are missing because the command wrote more than the server keeps."""

    @property
    def stdout(self) -> str:
        """Standard output as text; what is not UTF-8 shows as U+FFFD."""
        return self.stdout_bytes.decode(errors="replace")

    @property
    def stderr(self) -> str:
        """Standard error as text; what is not UTF-8 shows as U+FFFD."""
        return self.stderr_bytes.decode(errors="replace")

    @property
    def ok(self) -> bool:
        return self.exit_code == 0

    def check(self) -> Result:
        """Return self, or raise `CommandFailed` with the end of the output in its message."""
        if self.exit_code == 0:
            return self
        command = self.command if isinstance(self.command, str) else shlex.join(self.command)
        how = f"was ended by signal {self.signal}" if self.signal else f"ended with {self.exit_code}"
        tail = (self.stderr.strip() or self.stdout.strip())[-_TAIL:]
        raise CommandFailed(f"`{_short(command)}` {how}" + (f":\n{tail}" if tail else ""), result=self)


def _short(command: str) -> str:
    return command if len(command) <= 200 else command[:200] + "…"
