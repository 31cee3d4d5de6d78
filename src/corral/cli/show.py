"""Printing: JSON for programs, tables for people on a terminal, plain columns otherwise."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from pydantic import BaseModel


def plain(value: BaseModel | Sequence[BaseModel] | dict[str, Any] | Sequence[Any]) -> Any:
    """As JSON knows it."""
    dump = getattr(value, "model_dump", None)
    if dump is not None:
        return dump(mode="json")
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return value


def as_json(value: Any) -> None:
    """One document: indented on a terminal, one line otherwise."""
    print(json.dumps(plain(value), indent=2 if sys.stdout.isatty() else None, ensure_ascii=False))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Rows below headings."""
    cells = [["" if cell is None else line(str(cell)) for cell in row] for row in rows]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        grid = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            grid.add_column(column.upper(), overflow="fold")
        for row in cells:
            grid.add_row(*row)
        Console().print(grid, markup=False)
        return
    widths = [max(len(row[column]) for row in [list(columns), *cells]) for column in range(len(columns))]
    for row in [[column.upper() for column in columns], *cells]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def line(text: str) -> str:
    """What a sandbox may have said, on one line: nothing in it moves the cursor or changes the terminal."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def fields(values: dict[str, object]) -> None:
    """One thing's properties, one a line."""
    width = max(map(len, values))
    for name, value in values.items():
        if value not in (None, "", {}, []):
            text = ", ".join(f"{key}={item}" for key, item in cast("dict[str, object]", value).items()) if isinstance(value, dict) else value
            print(f"{name.ljust(width)}  {text}")


def ago(then: datetime | None) -> str:
    """How long ago, roughly."""
    if then is None:
        return ""
    return span((datetime.now(UTC) - then).total_seconds())


def span(seconds: float) -> str:
    """A duration, roughly."""
    for size, word in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds / size:.0f}{word}"
    return f"{max(0, seconds):.0f}s"


def size(count: float) -> str:
    """Bytes, roughly."""
    for word in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or word == "GiB":
            return f"{count:.0f} {word}" if word == "B" else f"{count:.1f} {word}"
        count /= 1024
    return ""


@contextmanager
def progress(what: str, path: Path | None) -> Generator[Callable[[int], object] | None, None, None]:
    """A bar for long work when a terminal is there; nothing otherwise. Yields what is to be called with numbers of bytes."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    total = path.stat().st_size if path is not None and path.is_file() else None
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)
