"""How a context is started: one command line, and the program itself as the first line of its input. So the program is that of this server, whatever the image's age."""

from __future__ import annotations

import functools
import json
from pathlib import Path

from corral.schema.process import Process, ProcessStart

IMAGE = "code-interpreter"
WARM = ("python",)
"""Languages whose default contexts are begun as soon as there is a sandbox of that image."""
_GUEST = Path(__file__).with_name("guest")
_FIRST = "import json,sys;given=json.loads(sys.stdin.buffer.readline());exec(compile(given['driver'],'<corral>','exec'))"
_TAG = "corral.code"
_DEFAULT = "default"


@functools.cache
def program() -> bytes:
    """The first line."""
    return json.dumps({name: (_GUEST / f"{name}.py").read_text() for name in ("driver", "kernel")}).encode() + b"\n"


def request(language: str, cwd: str | None, *, default: bool) -> ProcessStart:
    tag = ":".join((_TAG, language, *((_DEFAULT,) if default else ())))
    return ProcessStart(argv=["python3", "-c", _FIRST, language], command=None, cwd=cwd, user=None, stdin=True, timeout=None, tag=tag)


def language_of(process: Process) -> str | None:
    """None: it is no context."""
    tag, *words = (process.tag or "").split(":")
    return words[0] if tag == _TAG and words else None


def is_default(process: Process) -> bool:
    return (process.tag or "").split(":")[2:] == [_DEFAULT]
