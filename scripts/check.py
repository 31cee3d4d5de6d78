#!/usr/bin/env python3
"""`./corral test`: every check of this repository, in the order in which a failure is cheapest to see.

Without arguments: lint, types, import contracts, the generated SDK, the guest agent, then unit, contract, system and security tests on the machine's
runsc, and those system and security tests that start sandboxes once more on a recent one built from its Go module (scripts/runsc), where that can be had. What could not be tested is said, not skipped.
Few tests that fail are run once more by themselves, on a fresh server: those that pass then are named as unsteady in the closing lines, and are to be looked into.
With arguments: only pytest, with these arguments, after the machine has been set up (`./corral test tests/unit`, `./corral test -m "not slow" -k files`).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sysconfig.get_path("scripts"))
CACHE = Path(os.environ.get("CORRAL_TEST_CACHE", "/var/cache/corral/test"))
"""What runs share: runsc, images. Made once; tests get homes of their own."""
FEW = 8
"""More failures than these are no accident."""


@dataclass
class Report:
    """What was done, for the closing lines."""

    failed: list[str] = field(default_factory=list[str])
    untested: list[str] = field(default_factory=list[str])
    engines: list[str] = field(default_factory=list[str])
    unsteady: list[str] = field(default_factory=list[str])

    def step(self, name: str, do: Callable[[], bool]) -> bool:
        print(f"\n── {name}", flush=True)
        began = time.monotonic()
        ok = do()
        print(f"── {name}: {'ok' if ok else 'FAILED'} in {time.monotonic() - began:.1f} s", flush=True)
        if not ok:
            self.failed.append(name)
        return ok


def run(*argv: str | Path, cwd: Path = ROOT, env: dict[str, str] | None = None, out: IO[str] | None = None) -> bool:
    done = subprocess.run([str(word) for word in argv], cwd=cwd, env={**os.environ, **(env or {})}, check=False, stdout=out, stderr=out)
    return done.returncode == 0


def setup() -> bool:
    """Ready the machine, and what all test runs share: runsc, the images, the project of the quick start."""
    fetch = "import sys, pathlib, corral.quickstart.project as project; project.fetch(pathlib.Path(sys.argv[1]))"
    return run(BIN / "corral", "setup", env={"CORRAL_HOME": str(CACHE / "home")}) and run(sys.executable, "-c", fetch, CACHE / "home" / "cache")


OTHERS = {
    "buildah": "buildah",
    "docker-registry": "docker-registry",
    "skopeo": "skopeo",
    "umoci": "umoci",
    "ssh": "openssh-client",
    "sftp": "openssh-client",
    "rsync": "rsync",
    "certutil": "libnss3-tools",
    "update-ca-certificates": "ca-certificates",
}
"""Other people's programs that tests hold ours against, and the packages they are in."""


def other_programs(report: Report) -> None:
    """Of the distribution, where it has them."""
    from corral.errors import SetupError
    from corral.setup import apt

    for package in dict.fromkeys(package for program, package in OTHERS.items() if shutil.which(program) is None):
        try:
            apt.install([package], print)
        except SetupError as error:
            report.untested.append(f"against {package}: {error}")


def pytest(arguments: Sequence[str], *, runsc: Path, out: IO[str] | None = None) -> bool:
    return run(sys.executable, "-m", "pytest", *arguments, env={"CORRAL_TEST_CACHE": str(CACHE), "CORRAL_TEST_RUNSC": str(runsc)}, out=out)


@dataclass
class Suite:
    """Tests (pytest's arguments) on one runsc. What it prints is kept in `log`."""

    which: Sequence[str]
    runsc: Path
    log: Path
    seconds: float = 0.0
    failures: list[str] | None = None
    """None: it did not end as it should."""

    @property
    def name(self) -> str:
        return f"{' '.join(self.which)} on {self.runsc}"

    def run(self) -> None:
        cache, began = ROOT / ".pytest_cache" / self.log.stem, time.monotonic()
        with self.log.open("w") as out:
            ok = pytest(["--cache-clear", "-o", f"cache_dir={cache}", *self.which], runsc=self.runsc, out=out)
        failed = cache / "v/cache/lastfailed"
        self.failures = [] if ok else list(json.loads(failed.read_text())) if failed.exists() else None
        self.seconds = time.monotonic() - began

    def again(self, report: Report) -> bool:
        """Whether all of it passed, the few that failed at the second time; which is told."""
        if self.failures is None or len(self.failures) > FEW:
            return False
        if self.failures:
            print(f"\n── once more: {', '.join(self.failures)}", flush=True)
            if not pytest(self.failures, runsc=self.runsc):
                return False
            report.unsteady += [f"{name} (on {self.runsc})" for name in self.failures]
        return True


def follow(suite: Suite, running: futures.Future[None]) -> None:
    """Show what it prints until it has ended."""
    print(f"\n── {suite.name}", flush=True)
    with suite.log.open() as printed:
        while True:
            over = bool(futures.wait([running], timeout=0.5).done)
            print(printed.read(), end="", flush=True)
            if over:
                return running.result()


def suites(report: Report, found: Path) -> None:
    """All of them, in an order in which both halves take as long, and no two that need the one small internet of this machine run at once."""
    with futures.ThreadPoolExecutor(2) as beside, tempfile.TemporaryDirectory() as logs:
        begun: list[tuple[Suite, futures.Future[None]]] = []

        def begin(runsc: Path, *which: str) -> None:
            suite = Suite(which, runsc, Path(logs, f"suite-{len(begun)}"))
            suite.log.touch()
            begun.append((suite, beside.submit(suite.run)))

        begin(found, "tests/unit", "tests/contract", "tests/facades")
        begin(found, "tests/security")
        begin(found, "tests/system")
        report.engines.append(version(found))
        if (recent := recent_runsc(report)) is not None and recent != found:
            begin(recent, "-m", "not no_engine", "tests/system")
            begin(recent, "-m", "not no_engine", "tests/security")
            report.engines.append(version(recent))
        for suite, running in begun:
            follow(suite, running)
        for suite, _ in begun:
            if not report.step(f"{suite.name}, {suite.seconds:.0f} s", lambda suite=suite: suite.again(report)) and suite.failures:
                report.failed += suite.failures


def agent() -> bool:
    """vet and the tests of the guest agent, without a network."""
    go = shutil.which("go", path=str(BIN)) or "go"
    env = {"GOPROXY": "off", "GOTOOLCHAIN": "local", "GOFLAGS": "-buildvcs=false", "CGO_ENABLED": "0"}
    return run(go, "vet", "./...", cwd=ROOT / "agent", env=env) and run(go, "test", "./...", cwd=ROOT / "agent", env=env)


def recent_runsc(report: Report) -> Path | None:
    """The recent runsc, or None with the reason said."""
    directory = CACHE / "recent"
    go = shutil.which("go", path=str(BIN)) or "go"
    built = subprocess.run(
        [sys.executable, str(ROOT / "scripts/build_runsc.py"), str(directory), "--go", go],
        capture_output=True,
        text=True,
        check=False,
    )
    if built.returncode == 0:
        return Path(built.stdout.strip())
    why = built.stderr.strip().splitlines()[-1:] or ["no reason given"]
    report.untested.append(f"a recent runsc: {why[0]}")
    if built.returncode != 3:
        report.failed.append("build of the recent runsc")
    return None


def version(runsc: Path) -> str:
    done = subprocess.run([str(runsc), "--version"], capture_output=True, text=True, check=False)
    return f"{done.stdout.splitlines()[0] if done.stdout else 'unknown'} ({runsc})"


def machine_runsc() -> Path:
    """The one that `corral setup` found or installed."""
    from corral.node import runsc
    from corral.places import Places

    return runsc.find(Places(CACHE / "home")).path


def everything() -> int:
    report = Report()
    report.step("ruff check", lambda: run(BIN / "ruff", "check"))
    report.step("ruff format", lambda: run(BIN / "ruff", "format", "--check"))
    report.step("pyright", lambda: run(BIN / "pyright", "--pythonpath", sys.executable))
    report.step("import contracts", lambda: run(BIN / "lint-imports"))
    report.step("generated SDK", lambda: run(sys.executable, "scripts/async_to_sync.py", "--check"))
    report.step("guest agent", agent)
    if not report.step("setup", setup):
        return close(report)
    other_programs(report)
    found = machine_runsc()
    suites(report, found)
    return close(report)


def close(report: Report) -> int:
    print()
    for engine in report.engines:
        print(f"tested: {engine}")
    for name in report.unsteady:
        print(f"unsteady: {name} failed, and passed when it ran again")
    for thing in report.untested:
        print(f"untested: {thing}")
    print(f"failed: {', '.join(report.failed)}" if report.failed else "all checks passed")
    return 1 if report.failed else 0


def main(arguments: Sequence[str]) -> int:
    if not arguments:
        return everything()
    return 0 if setup() and pytest(arguments, runsc=machine_runsc()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
