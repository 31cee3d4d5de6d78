"""The steps, in order. Each uses what any user has: the command line to start the server, the SDK for everything else."""

from __future__ import annotations

import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from corral import Client, Sandbox, spawn
from corral.errors import CorralError, PlatformError
from corral.places import Places
from corral.quickstart import project
from corral.quickstart.table import Timings
from corral.setup.install import setup

Say = Callable[[str], None]

UP_TIMEOUT = 120
"""Seconds for the server to be ready: it makes its first pool members meanwhile."""
STEP_TIMEOUT = 600
"""Seconds for any command in the sandbox; the slowest takes tens."""

_PROMPT = "$ "
_TERMINAL = ("tty", "uname -sr", "python3 -c 'print(6 * 7)'", "exit")


@dataclass(frozen=True)
class Outcome:
    """The tests' result as they wrote it themselves."""

    tests: int
    failures: int
    skipped: int
    seconds: float

    @property
    def held(self) -> bool:
        return self.tests > self.skipped and self.failures == 0


def quickstart(places: Places, *, say: Say, host_mirrors: bool = False) -> int:
    """Everything from set-up to a table of timings. Returns 0 when the tests ran and passed, else 1. Raises what the steps raise."""
    timings = Timings()
    say("Readying this machine")
    with timings.step("machine ready"):
        setup(places, say=_indented(say), host_mirrors=host_mirrors)
    with timings.step("project fetched"):
        fetched = project.fetch(places.home / "cache")
    say("Starting the server")
    with timings.step("server ready"):
        url = _server()
    say("Creating a sandbox")
    with timings.step("sandbox created, first command run"):
        sandbox = Sandbox.create("base", memory=1024, tags={"made-by": "quickstart"})
        system = sandbox.run("uname -srm; dmesg | head -n 1").check().stdout.split("\n")
    with sandbox:
        say(f"  {sandbox.id}: {' · '.join(line.strip() for line in system if line)}")
        outcome, code = _run_tests(sandbox, fetched, timings, say)
        say("A terminal in it")
        with timings.step("terminal session"):
            transcript = _terminal(sandbox)
        for line in transcript:
            say(f"  │ {line}")
    held = code == 0 and outcome.held and any(line == "42" for line in transcript)
    say("")
    for line in timings.lines():
        say(line)
    say("")
    say(
        f"{project.NAME}'s tests in the sandbox: {outcome.tests - outcome.failures - outcome.skipped} passed, {outcome.failures} failed, "
        f"{outcome.skipped} skipped in {outcome.seconds:.1f} s ({fetched.lines:,} lines of Python); exit code {code}"
    )
    say(f"API: {url}  (schema: {url}/openapi.json, metrics: {url}/metrics)")
    say("Next:  ./corral run -- python3 -c 'print(6*7)'    ./corral create --name box && ./corral shell box    ./corral ls    ./corral down")
    return 0 if held else 1


def _server() -> str:
    """The URL of a server that answers: the one there is, else one started now."""
    try:
        with Client() as client:
            client.health()
            return client.connection.url
    except (PlatformError, CorralError):
        spawn.run([sys.executable, "-m", "corral", "up", "--detach"], timeout=UP_TIMEOUT).check()
    with Client() as client:
        client.health()
        return client.connection.url


def _run_tests(sandbox: Sandbox, fetched: project.Project, timings: Timings, say: Say) -> tuple[Outcome, int]:
    home = sandbox.run("pwd").check().stdout.strip()
    say(f"Uploading {project.NAME} ({fetched.lines:,} lines) and the wheels its tests need")
    with timings.step("source and wheels uploaded"):
        sandbox.files.upload(fetched.source, f"{home}/{project.NAME}")
        sandbox.files.upload(fetched.wheels, f"{home}/wheels")
    say("Installing pytest in it, without a network")
    with timings.step("pytest installed offline"):
        sandbox.run(
            "python3 -m venv --without-pip venv && python3 -m pip --python venv/bin/python install -q --no-index --find-links wheels pytest",
            timeout=STEP_TIMEOUT,
        ).check()
    say(f"Running {project.NAME}'s tests")
    with timings.step("test suite run"):
        process = sandbox.exec(
            "../venv/bin/python", "-m", "pytest", "-v", "--junitxml=../result.xml", project.TESTS, cwd=f"{home}/{project.NAME}", timeout=STEP_TIMEOUT
        )
        for line in process.stdout:
            say(f"  │ {line.rstrip()}")
        code = process.wait()
    with timings.step("result downloaded"), tempfile.TemporaryDirectory(prefix="corral-quickstart-") as directory:
        report = Path(directory) / "result.xml"
        sandbox.files.download(f"{home}/result.xml", report)
        outcome = _outcome(report.read_bytes())
    return outcome, code


def _outcome(report: bytes) -> Outcome:
    """From pytest's JUnit file. It comes out of a sandbox: only numbers of the one element we know are taken."""
    if b"<!DOCTYPE" in report or b"<!ENTITY" in report:
        raise PlatformError("the tests' report is not one that pytest writes")
    suite = ElementTree.fromstring(report).find("testsuite")  # noqa: S314 - entities are refused above
    if suite is None:
        raise PlatformError("the tests' report has no results")
    count = {name: int(suite.get(name, "0")) for name in ("tests", "failures", "errors", "skipped")}
    return Outcome(count["tests"], count["failures"] + count["errors"], count["skipped"], float(suite.get("time", "0")))


def _terminal(sandbox: Sandbox) -> list[str]:
    """A shell on a pseudo-terminal, spoken to as a person would, each command after a prompt; returns what stood on the screen."""
    shell = sandbox.exec("bash", "--norc", "-i", pty=(24, 80), env={"PS1": _PROMPT, "TERM": "dumb"}, timeout=STEP_TIMEOUT)
    text = ""
    for command in _TERMINAL:
        while not text.endswith(_PROMPT):
            piece = shell.stdout.read1()
            if not piece:
                raise PlatformError(f"the shell ended before it was told to: {text!r}")
            text += piece
        shell.stdin.write(f"{command}\n")
        text += shell.stdout.read1()
    text += shell.stdout.read()
    shell.wait()
    return [line.rstrip("\r") for line in text.split("\n") if line.strip()]


def _indented(say: Say) -> Say:
    return lambda line: say(f"  {line}")
