"""Nothing that a user meets is undocumented: every error code, command and reason has its line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from starlette.routing import Route, WebSocketRoute

from corral.api.app import ROUTERS
from corral.cli.app import app
from corral.errors import BY_CODE, RequestError
from corral.schema.sandbox import Reason, State

DOCS = Path(__file__).resolve().parents[2] / "docs"
ROOT = DOCS.parent
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])


def commands(group: typer.Typer, before: str = "") -> Iterator[str]:
    for command in group.registered_commands:
        yield before + (command.name or (command.callback.__name__ if command.callback else ""))
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        yield from commands(inner.typer_instance, f"{before}{inner.name} ")


@pytest.mark.parametrize("code", sorted(code for code, cls in BY_CODE.items() if issubclass(cls, RequestError) or cls.status != 500))
def test_every_error_code_has_its_line_and_its_status(code: str) -> None:
    assert re.search(rf"^\| `{code}` \| {BY_CODE[code].status} \|", (DOCS / "errors.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("command", sorted(commands(app)))
def test_every_command_has_its_heading(command: str) -> None:
    assert re.search(rf"`corral {command}\b", (DOCS / "cli.md").read_text()), f"docs/cli.md does not tell of `corral {command}`"


def routes() -> Iterator[str]:
    for router in ROUTERS:
        for route in router.routes:
            assert isinstance(route, Route | WebSocketRoute)
            methods = (route.methods or set()) - {"HEAD", "OPTIONS"} if isinstance(route, Route) else {"WS"}
            yield from (f"{method} {route.path}" for method in methods)


@pytest.mark.parametrize("route", sorted(set(routes())))
def test_every_route_has_its_line(route: str) -> None:
    assert f"| `{route}` |" in (DOCS / "http-api.md").read_text()


@pytest.mark.parametrize("word", [*State, *Reason])
def test_every_state_and_reason_is_in_the_glossary(word: str) -> None:
    assert f"`{word}`" in (DOCS / "glossary.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"
