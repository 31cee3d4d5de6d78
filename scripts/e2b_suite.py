"""Run E2B's own Python tests against a Corral server that is up, and compare with what is expected (scripts/e2b_suite.toml).

    scripts/e2b_suite.py --server http://127.0.0.1:8080 --key ck_… [--client 2.45.1] [--jobs 3] [--only PATTERN]
    scripts/e2b_suite.py --internet [--client 2.45.1] …

The tests are fetched at a pinned commit (or taken from `--source`, a checkout or an archive of it), and run with the released client in an environment of its own; nothing of either
becomes part of Corral. With `--internet` against a server of its own, which has a small internet, TLS and a name for every sandbox (tests/harness/e2b_world.py); by Corral's own Python, as root.
First they are run without any server: what passes then says nothing about one, and is left out. Ends with 1 when a test fails that is not expected to.
"""

from __future__ import annotations

import argparse
import fnmatch
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import urllib.request
import venv
import xml.etree.ElementTree as ElementTree
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

COMMIT = "b8029973a"
CLIENT = "2.45.1"
"""The client of that commit."""
ARCHIVE = "https://codeload.github.com/e2b-dev/E2B/tar.gz/{commit}"
TESTS = "packages/python-sdk/tests"
INI = "packages/python-sdk/pytest.ini"
TOOLS = ("pytest>=9.0.3,<10", "pytest-asyncio>=1.3", "pytest-timeout>=2.4", "pytest-xdist", "pytest-dotenv", "python-dotenv")
NOWHERE = "http://127.0.0.1:9"
"""Nobody listens on the port of `discard`."""


@dataclass(frozen=True)
class Expected:
    """Tests that are not expected to pass. `needs`: what they lack when that is no fault of the server (`internet` and `tls`, which `--internet` has; `more`)."""

    tests: list[str]
    reason: str
    needs: str | None = None

    def covers(self, id: str) -> bool:
        return any(fnmatch.fnmatchcase(id, pattern) for pattern in self.tests)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--server", help="URL of the API")
    parser.add_argument("--key", help="a key of the role member")
    parser.add_argument("--internet", action="store_true", help="a server of its own with an internet, TLS and names, instead of `--server`")
    parser.add_argument("--client", default=CLIENT, help="version of the package e2b")
    parser.add_argument("--source", type=Path, help="checkout or archive of E2B's repository at the pinned commit")
    parser.add_argument("--scratch", type=Path, default=Path.home() / ".cache" / "corral" / "e2b-suite")
    parser.add_argument("--jobs", default="3")
    parser.add_argument("--only", default="*", help="pattern for the names of tests")
    chosen = parser.parse_args()
    if chosen.internet == bool(chosen.server and chosen.key):
        parser.error("give --server and --key, or --internet")
    expected = [Expected(**one) for one in tomllib.loads(Path(__file__).with_suffix(".toml").read_text())["expected"]]

    chosen.scratch = chosen.scratch.absolute()
    python = _environment(chosen.scratch, chosen.client)
    suite = _suite(chosen.scratch, chosen.source)
    # Which tests need a server is found out with one client for all: with another some fail for reasons of their own.
    silent = {name: value for name, value in os.environ.items() if not name.startswith("E2B_")} | {"E2B_CONNECTION_RETRIES": "0"}
    without = chosen.scratch / "without-server.xml"
    if not without.exists():
        _run(
            _environment(chosen.scratch, CLIENT),
            suite,
            without,
            {**silent, "E2B_API_KEY": "e2b_" + "0" * 40, "E2B_API_URL": NOWHERE, "E2B_SANDBOX_URL": NOWHERE},
            jobs=chosen.jobs,
        )
    idle = {id for id, passed in _results(without).items() if passed}
    report = chosen.scratch / f"report-{chosen.client}.xml"
    with _place(chosen.server, chosen.key, internet=chosen.internet) as (url, key, environment):
        _stand_in(url, key)
        live = {**silent, **environment, "E2B_API_KEY": "e2b_" + key.removeprefix("ck_").removeprefix("e2b_")}
        _run(python, suite, report, live, jobs=chosen.jobs, files=_files(_results(without), idle, chosen.only))
    results = {id: passed for id, passed in _results(report).items() if id not in idle and fnmatch.fnmatchcase(id, chosen.only)}
    served = {"internet", "tls"} if chosen.internet else set[str]()
    return _judge(results, [one for one in expected if one.needs not in served])


@contextmanager
def _place(server: str | None, key: str | None, *, internet: bool) -> Generator[tuple[str, str, dict[str, str]]]:
    """Where the server is, a key, and what the client is given to find it."""
    if not internet:
        assert server is not None
        assert key is not None
        yield server, key, {"E2B_API_URL": server, "E2B_SANDBOX_URL": server}
        return
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    world: Any = import_module("harness.e2b_world")
    with world.world() as found:
        yield found.url, found.key, found.environment


def _judge(results: dict[str, bool], expected: list[Expected]) -> int:
    """Say what came out."""
    about = {id: next((one for one in expected if one.covers(id)), None) for id in results}
    results = {id: passed for id, passed in results.items() if (one := about[id]) is None or one.needs != "no server"}
    offline = {id: passed for id, passed in results.items() if (one := about[id]) is None or one.needs is None}
    surprises = sorted(id for id, passed in results.items() if not passed and about[id] is None)
    better = sorted(id for id, passed in results.items() if passed and about[id] is not None)
    for id in surprises:
        print(f"failed, and was expected to pass: {id}")
    for id in better:
        print(f"passed, and was expected to fail: {id}")
    print(f"{sum(results.values())} of {len(results)} tests that need a server passed; of those that can here, {sum(offline.values())} of {len(offline)}")
    return 1 if surprises else 0


def _stand_in(server: str, key: str) -> None:
    """Let `base` stand for the image that most template builds start from, so that none is fetched."""
    native = {"Authorization": "Bearer ck_" + key.removeprefix("e2b_").removeprefix("ck_"), "Content-Type": "application/json"}
    body = json.dumps({"image": "base", "tag": "22.04"}).encode()
    with urllib.request.urlopen(urllib.request.Request(server + "/v1/templates/ubuntu", body, native, method="PUT"), timeout=60):
        pass


def _environment(scratch: Path, version: str) -> Path:
    """An environment with that client and pytest; returns its Python."""
    place = scratch / f"client-{version}"
    python = place / "bin" / "python"
    if not (place / "complete").exists():
        venv.create(place, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", f"e2b=={version}", *TOOLS], check=True)
        (place / "complete").touch()
    return python


def _suite(scratch: Path, source: Path | None) -> Path:
    """A directory with the tests, and with nothing of the client's source that could be imported in its place."""
    place = scratch / f"suite-{COMMIT}"
    if place.exists():
        return place
    half = scratch / "suite-half"
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(parents=True)
    if source is not None and source.is_dir():
        shutil.copytree(source / TESTS, half / "tests")
        shutil.copy(source / INI, half / "pytest.ini")
    else:
        raw = source.read_bytes() if source is not None else _fetched()
        with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
            for member in archive:
                name = member.name.partition("/")[2]
                if name == INI or name.startswith(TESTS + "/"):
                    member.name = name.removeprefix("packages/python-sdk/")
                    archive.extract(member, half, filter="data")
    half.rename(place)
    return place


def _fetched() -> bytes:
    with urllib.request.urlopen(ARCHIVE.format(commit=COMMIT), timeout=300) as answer:
        return answer.read()


def _run(python: Path, suite: Path, report: Path, environment: dict[str, str], *, jobs: str, files: list[str] | None = None) -> None:
    command = [python, "-m", "pytest", "-q", "-n", jobs, "-p", "no:cacheprovider", "--tb=short", f"--junitxml={report}", *(files or ["tests"])]
    subprocess.run(command, cwd=suite, env=environment, stdout=sys.stderr, check=False)


def _files(known: dict[str, bool], idle: set[str], only: str) -> list[str]:
    """The files in which there is a test that needs a server."""
    return sorted({_file(id) for id in known if id not in idle and fnmatch.fnmatchcase(id, only)})


def _file(id: str) -> str:
    """Of `package.test_module.Class::name` the module's."""
    parts = id.partition("::")[0].split(".")
    module = next(place for place, part in enumerate(parts) if part.startswith("test_"))
    return "/".join(parts[: module + 1]) + ".py"


def _results(report: Path) -> dict[str, bool]:
    """Whether each test passed, by `package.module::name`; those that were skipped are left out."""
    found: dict[str, bool] = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        if case.find("skipped") is None:
            id = f"{case.get('classname')}::{case.get('name')}"
            found[id] = found.get(id, True) and case.find("failure") is None and case.find("error") is None
    return found


if __name__ == "__main__":
    sys.exit(main())
