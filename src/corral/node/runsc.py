"""Finding runsc and the words of its command line.

Everything works with 20240729 (Debian's) and later. Newer ones name their releases `release-20260905.0` and keep the sentry in a second program, in `gvisor-bin/` beside runsc.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from corral import spawn
from corral.errors import SetupError
from corral.places import Places

OLDEST = 20240729
BESIDE = "gvisor-bin"
"""A folder of programs that newer ones need beside them, the sentry's own among them."""
CHOSEN = "chosen"
"""A link in the engines folder to the runsc that set-up chose."""
_VERSION = re.compile(r"^runsc version (\S*?(\d{8})\S*)", re.MULTILINE)


@dataclass(frozen=True)
class Runsc:
    """One runsc: where it is, what it calls itself, and the date in its version."""

    path: Path
    version: str
    date: int

    @property
    def burns_when_idle(self) -> bool:
        """Whether an awake idle sentry polls for ever, about 4 % of a core: until the change of 2026-06-18 (gVisor issue 13361)."""
        return self.date < 20260618

    def create(self, *, root: Path, bundle: Path, id: str, platform: str) -> list[str]:
        """The command that makes a sentry and its gofer: the only use of runsc's command line.

        - `--network=sandbox` in an empty namespace: its own stack, without a device until one is given; what is saved today restores when there is one.
        - `--overlay2=none`: what the guest writes is on the host at once, so that it outlives the sentry.
        - `--file-access=exclusive` for the root, which only the guest changes; `shared` for what the host mounts under /vol later.
        - `--ignore-cgroups`: the holder has put it into our own group already.
        """
        return [
            str(self.path),
            f"--root={root}",
            "--log=" + str(bundle / "runsc.log"),
            "--log-format=text",
            "--panic-log=" + str(bundle / "panic.log"),
            f"--platform={platform}",
            "--network=sandbox",
            "--overlay2=none",
            "--directfs=true",
            "--file-access=exclusive",
            "--file-access-mounts=shared",
            "--host-uds=none",
            "--ignore-cgroups",
            "create",
            f"--bundle={bundle}",
            id,
        ]


def parse_version(text: str) -> tuple[str, int] | None:
    """The version and its date in the output of `runsc --version`."""
    match = _VERSION.search(text)
    return (match[1], int(match[2])) if match else None


def candidates(places: Places, configured: Path | None = None) -> list[Path]:
    """Where a runsc may be, in the order of preference: the configured one alone, else the one that set-up chose because others failed their trial, else PATH,
    else the engines folder, newest first.
    """
    if configured is not None:
        return [configured]
    found: list[Path] = []
    if (chosen := places.engines / CHOSEN).exists():
        found.append(chosen)
    if on_path := shutil.which("runsc"):
        found.append(Path(on_path))
    if places.engines.is_dir():
        found += sorted((path / "runsc" for path in places.engines.iterdir() if (path / "runsc").is_file()), reverse=True)
    return found


def probe(path: Path) -> Runsc:
    """Ask a runsc for its version. Raises `SetupError` when it is none, does not run, or is too old."""
    if not os.access(path, os.X_OK):
        raise SetupError(f"{path} is not an executable file", hint="run `corral setup`")
    try:
        output = spawn.run([str(path), "--version"], timeout=20).check().stdout.decode(errors="replace")
    except (spawn.ProgramFailed, OSError) as error:
        raise SetupError(f"{path} does not run: {error}", hint="run `corral setup`") from error
    parsed = parse_version(output)
    if parsed is None:
        raise SetupError(f"{path} does not say a release date: {output.strip()[:200]!r}", hint="use a released runsc")
    version, date = parsed
    if date < OLDEST:
        raise SetupError(f"{path} is {version}; Corral needs {OLDEST} or later", hint="run `corral setup`, which installs one")
    return Runsc(path.resolve(), version, date)


def find(places: Places, configured: Path | None = None) -> Runsc:
    """The first usable runsc. Raises `SetupError` that tells what was wrong with each."""
    tried = candidates(places, configured)
    faults: list[str] = []
    for path in tried:
        try:
            return probe(path)
        except SetupError as error:
            faults.append(error.message)
    raise SetupError("no usable runsc (gVisor) was found" + "".join(f"; {fault}" for fault in faults), hint="run `corral setup`, which installs one")


def state_files(root: Path, id: str) -> Sequence[Path]:
    """The files runsc leaves for a sandbox, which we unlink ourselves: `runsc delete` takes over a second."""
    return [root / f"{id}_sandbox:{id}.state", root / f"{id}_sandbox:{id}.lock", root / f"runsc-{id}.sock"]
