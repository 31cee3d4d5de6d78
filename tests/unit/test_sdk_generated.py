"""The blocking client is what the generator makes of the one with await, and both have the same names."""

from __future__ import annotations

import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import corral
from corral import aio

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("async_to_sync", ROOT / "scripts" / "async_to_sync.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_twin_is_current() -> None:
    done = subprocess.run([sys.executable, ROOT / "scripts" / "async_to_sync.py", "--check"], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("", 0), done.stderr


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("async def f(): return await g(await h())", "def f(): return g(h())"),
        (
            "async def f():\n    async with a as b, c: pass\n    async for x in y: pass  # kept",
            "def f():\n    with a as b, c: pass\n    for x in y: pass  # kept",
        ),
        ("async def f(): return [x async for x in y if await z]", "def f(): return [x for x in y if z]"),
        ("async def f(): await asyncio.to_thread(g, 1, k=2)", "def f(): g(1, k=2)"),
        ("async def f(): await asyncio.to_thread(g)", "def f(): g()"),
        ("async def f(): await asyncio.shield(g(1))", "def f(): g(1)"),
        ("async def f():\n    if ASYNC:\n        a()\n    else:\n        b()\n        c()", "def f():\n    b()\n    c()"),
        ("async def f():\n    if ASYNC and x:\n        a()\n    d()", "def f():\n    d()"),
        ("async def __aenter__(self): await self.aclose()", "def __enter__(self): self.close()"),
        ('s = "async def await AsyncIterator"', 's = "async def await AsyncIterator"'),
        ("x = 'é'; y = lambda: asyncio.Lock()", "x = 'é'; y = lambda: threading.Lock()"),
    ],
)
def test_what_the_generator_does(generator: ModuleType, before: str, after: str) -> None:
    text = generator.convert("from __future__ import annotations\n" + before, "x.py")
    body = text.split("annotations\n", 1)[1]
    assert body.removeprefix("\nimport threading\n").strip() == after


@pytest.mark.parametrize("name", ["Client", "Files", "Process", "Sandbox"])
def test_both_clients_have_the_same_methods_and_arguments(name: str) -> None:
    blocking, awaiting = getattr(corral, name), getattr(aio, name)

    def methods(cls: type) -> dict[str, list[str]]:
        return {key: list(inspect.signature(value).parameters) for key, value in inspect.getmembers(cls, callable) if not key.startswith("_")}

    renamed = {{"aclose": "close"}.get(key, key): value for key, value in methods(awaiting).items()}
    assert methods(blocking) == renamed


def test_importing_the_package_loads_nothing_else() -> None:
    code = "import sys, corral; dir(corral); print([name for name in ('pydantic', 'httpcore2', 'asyncio', 'typer') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_public_name_is_there() -> None:
    assert all(getattr(corral, name) is not None for name in corral.__all__)
    assert set(aio.__all__) <= set(corral.__all__)
    nonsense = "Nonsense"
    with pytest.raises(AttributeError):
        getattr(corral, nonsense)
