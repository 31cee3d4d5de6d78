"""`corral quickstart`: from a machine without anything to a real project's tests run in a sandbox, with what each step took."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """The command. Exits with 0 only when everything held and the project's tests passed."""
    parser = argparse.ArgumentParser(prog="corral quickstart", description="From nothing to a real project's tests in a sandbox, in one command.")
    parser.add_argument("--host-mirrors", action="store_true", help="hand this machine's pip, npm and apt mirror settings into the image")
    chosen = parser.parse_args(arguments)

    from corral import logs
    from corral.places import Places, default_home
    from corral.quickstart.tour import quickstart

    logs.configure("error", "console")
    return quickstart(Places(default_home()), say=_print, host_mirrors=chosen.host_mirrors)


def _print(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - a command's own output
