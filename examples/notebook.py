"""A Python that remembers: cells go to one live interpreter, as in a notebook, with what each of them printed.

python examples/notebook.py
"""

from __future__ import annotations

import json
from types import TracebackType
from typing import Self

from corral import Sandbox

KERNEL = """
import contextlib, io, json, sys, traceback
names = {}
for line in sys.stdin:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            exec(compile(json.loads(line), "<cell>", "exec"), names)
        except BaseException:
            traceback.print_exc(limit=0)
    print(json.dumps(out.getvalue()), file=sys.__stdout__, flush=True)
"""


class Notebook:
    """One interpreter in one sandbox."""

    def __init__(self) -> None:
        self._sandbox = Sandbox.create("base")
        self._kernel = self._sandbox.exec("python3", "-c", KERNEL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._kernel.delete()
        self._sandbox.delete()

    def cell(self, code: str) -> str:
        """Run a cell; returns what it printed."""
        self._kernel.stdin.write(json.dumps(code) + "\n")
        return json.loads(self._kernel.stdout.readline())


def main() -> None:
    with Notebook() as notebook:
        for code in ("rows = [3, 1, 2]", "rows.sort(); print(rows)", "print(sum(rows) / len(rows))", "rows[7]"):
            print(f">>> {code}\n{notebook.cell(code)}", end="")


if __name__ == "__main__":
    main()
