#!/usr/bin/env python3
"""Make the blocking client from the one with await: src/corral/sdk/_async/*.py → src/corral/sdk/_sync/*.py.

    python scripts/async_to_sync.py            writes what differs
    python scripts/async_to_sync.py --check    says what differs and exits 1

The syntax tree says where to cut; the text is edited there, so that comments and layout stay. What it does:

- `async def`, `async with`, `async for`, `await x` lose their word, in comprehensions too;
- names change by the table `NAMES` (`aclosing` → `closing`), dotted ones by `DOTTED` (`asyncio.sleep` → `time.sleep`);
- `asyncio.to_thread(f, x)` becomes `f(x)` and `asyncio.shield(x)` becomes `x`;
- of `if ASYNC:` (or `if ASYNC and …:`) only the `else` branch is kept, of `a if ASYNC else b` only `b`;
- imports that nothing uses any more go, those that are now needed come.
"""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import sysconfig
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "corral" / "sdk" / "_async"
TARGET = ROOT / "src" / "corral" / "sdk" / "_sync"
MARK = "# Generated from sdk/_async/{name} by scripts/async_to_sync.py: edit that, not this.\n"

NAMES = {
    "AsyncGenerator": "Generator",
    "AsyncHTTPConnection": "HTTPConnection",
    "AsyncIterable": "Iterable",
    "AsyncIterator": "Iterator",
    "AsyncNetworkStream": "NetworkStream",
    "StopAsyncIteration": "StopIteration",
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "__aiter__": "__iter__",
    "__anext__": "__next__",
    "_async": "_sync",
    "aclose": "close",
    "aclosing": "closing",
    "aiter_stream": "iter_stream",
    "anext": "next",
    "aread": "read",
    "handle_async_request": "handle_request",
}
DOTTED = {"asyncio.sleep": "time.sleep", "asyncio.Condition": "threading.Condition", "asyncio.Lock": "threading.Lock"}
UNWRAPPED = {"asyncio.shield", "asyncio.to_thread"}
DOCSTRINGS = {"The client with await. The blocking twin in `_sync/` is generated from this folder.": "The blocking client."}

Edit = tuple[int, int, str]


def convert(source: str, name: str) -> str:
    """The blocking module for a module with await."""
    text = _drop_branches(source)
    text = _apply(text, _edits(text))
    for old, new in DOCSTRINGS.items():
        text = text.replace(old, new)
    return MARK.format(name=name) + _imports(text)


def _offsets(text: str) -> list[int]:
    """Byte offset of the start of each line."""
    starts, total = [0], 0
    for line in text.encode().splitlines(keepends=True):
        total += len(line)
        starts.append(total)
    return starts


def _apply(text: str, edits: list[Edit]) -> str:
    raw = text.encode()
    for start, end, new in sorted(set(edits), reverse=True):
        raw = raw[:start] + new.encode() + raw[end:]
    return raw.decode()


def _span(node: ast.expr | ast.stmt, starts: list[int]) -> tuple[int, int]:
    assert node.end_lineno is not None and node.end_col_offset is not None
    return starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset


def _is_flavor(test: ast.expr) -> bool:
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
        return _is_flavor(test.values[0])
    return isinstance(test, ast.Name) and test.id == "ASYNC"


def _drop_branches(text: str) -> str:
    """Resolve one `ASYNC` after the other, innermost last, until none is left."""
    while True:
        starts = _offsets(text)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.IfExp) and _is_flavor(node.test):
                start, end = _span(node, starts)
                kept = text.encode()[slice(*_span(node.orelse, starts))].decode()
                text = _apply(text, [(start, end, kept)])
                break
            if isinstance(node, ast.If) and _is_flavor(node.test):
                lines = text.splitlines(keepends=True)
                assert node.end_lineno is not None
                kept_lines: list[str] = []
                if node.orelse:
                    first, last = node.orelse[0].lineno - 1, node.end_lineno
                    deeper = node.orelse[0].col_offset - node.col_offset
                    kept_lines = [line[deeper:] if line.strip() else line for line in lines[first:last]]
                lines[node.lineno - 1 : node.end_lineno] = kept_lines
                text = "".join(lines)
                break
        else:
            return text


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return f"{node.value.id}.{node.attr}"
    return ""


def _edits(text: str) -> list[Edit]:
    starts, edits = _offsets(text), list[Edit]()
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Await():
                edits.append((_span(node, starts)[0], _span(node.value, starts)[0], ""))
            case ast.AsyncFunctionDef() | ast.AsyncFor() | ast.AsyncWith():
                start = _span(node, starts)[0]
                edits.append((start, start + len("async "), ""))
            case ast.Call() if _dotted(node.func) in UNWRAPPED:
                start, end = _span(node, starts)
                inner = _span(node.args[0], starts)
                edits.append((start, inner[0], ""))
                if len(node.args) == 1:
                    edits.append((inner[1], end, "" if _dotted(node.func) == "asyncio.shield" else "()"))
                else:
                    edits.append((inner[1], _span(node.args[1], starts)[0], "("))
            case ast.Attribute() if _dotted(node) in DOTTED:
                edits.append((*_span(node, starts), DOTTED[_dotted(node)]))
            case _:
                pass
    return edits + _token_edits(text, starts)


def _token_edits(text: str, starts: list[int]) -> list[Edit]:
    """Names, and the `async` of comprehensions, which the tree does not place."""
    lines, edits = text.splitlines(keepends=True), list[Edit]()
    statements = {(node.lineno, node.col_offset) for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.AsyncFunctionDef, ast.AsyncFor, ast.AsyncWith))}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.NAME:
            continue
        row, column = token.start
        start = starts[row - 1] + len(lines[row - 1][:column].encode())
        if token.string == "async" and (row, len(lines[row - 1][:column].encode())) not in statements:
            edits.append((start, start + len("async "), ""))
        elif token.string in NAMES:
            edits.append((start, start + len(token.string), NAMES[token.string]))
    return edits


def _imports(text: str) -> str:
    """Take out imports that nothing uses, add the modules the table brought in."""
    tree = ast.parse(text)
    casts = [node.args[0] for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "cast"]
    quoted = [ast.parse(kind.value, mode="eval") for kind in casts if isinstance(kind, ast.Constant) and isinstance(kind.value, str)]
    used = {node.id for part in (tree, *quoted) for node in ast.walk(part) if isinstance(node, ast.Name)}
    lines = text.splitlines(keepends=True)
    bound: set[str] = set()
    for node in reversed([node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]):
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            continue
        kept = sorted({(alias.name, alias.asname) for alias in node.names if (alias.asname or alias.name) in used}, key=lambda pair: pair[0])
        bound |= {asname or name for name, asname in kept}
        words = ", ".join(f"{name} as {asname}" if asname else name for name, asname in kept)
        new = "" if not kept else f"from {node.module} import {words}\n" if isinstance(node, ast.ImportFrom) else f"import {words}\n"
        assert node.end_lineno is not None
        lines[node.lineno - 1 : node.end_lineno] = [" " * node.col_offset + new] if new else []
    missing = [module for module in ("threading", "time") if module in used and module not in bound]
    if missing:
        future = lines.index("from __future__ import annotations\n")
        lines[future + 1 : future + 1] = ["\n", *(f"import {module}\n" for module in missing)]
    return "".join(lines)


def formatted(text: str, path: Path) -> str:
    """As ruff would write it: shorter lines join, imports are sorted."""
    ruff = Path(sysconfig.get_path("scripts")) / "ruff"
    for argv in (
        ["check", "--quiet", "--fix-only", "--select", "I,F401", "--stdin-filename", str(path), "-"],
        ["format", "--quiet", "--stdin-filename", str(path), "-"],
    ):
        text = subprocess.run([str(ruff), *argv], input=text, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    return text


def main() -> int:
    check = "--check" in sys.argv[1:]
    TARGET.mkdir(exist_ok=True)
    for path in SOURCE.glob("*.py"):  # ruff sorts imports by which modules are there
        if not check:
            (TARGET / path.name).touch()
    wanted = {path.name: formatted(convert(path.read_text(), path.name), TARGET / path.name) for path in sorted(SOURCE.glob("*.py"))}
    have = {path.name: path.read_text() for path in TARGET.glob("*.py")}
    changed = sorted(name for name in wanted.keys() | have.keys() if wanted.get(name) != have.get(name))
    for name in changed:
        print(f"{'differs' if check else 'written'}: {(TARGET / name).relative_to(ROOT)}")
        if not check and name in wanted:
            (TARGET / name).write_text(wanted[name])
        elif not check:
            (TARGET / name).unlink()
    return 1 if check and changed else 0


if __name__ == "__main__":
    sys.exit(main())
