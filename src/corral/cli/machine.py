"""Commands about this machine; their work is done by other parts, which are imported only then."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from corral.cli import options, show

if TYPE_CHECKING:
    from corral.places import Places

Home = Annotated[Path | None, typer.Option(help="Where Corral keeps its state [default: $CORRAL_HOME, else /var/lib/corral for root].")]


def setup(
    *,
    home: Home = None,
    image: Annotated[list[str] | None, typer.Option(help="Make only this image; may be given again.")] = None,
    host_mirrors: Annotated[bool, typer.Option("--host-mirrors", help="Hand this machine's pip, npm and apt mirror settings into images.")] = False,
    systemd: Annotated[bool, typer.Option("--systemd", help="Write a systemd unit for the server.")] = False,
) -> None:
    """Ready this machine: install what is missing, make the images, say what was changed."""
    from corral import logs
    from corral.setup.install import setup as ready

    logs.configure("error", "console")
    ready(_places(home), say=lambda line: print(line, flush=True), image_names=image, host_mirrors=host_mirrors, unit=systemd)


def doctor(*, home: Home = None, json: options.Json = False) -> int:
    """What this machine can do, what it lacks, and how to mend each. Exits with 2 when a sandbox can't run."""
    from corral import logs
    from corral.sdk.connection import discover
    from corral.setup.doctor import Line, Verdict, as_json, examine, origins

    logs.configure("error", "console")
    lines: list[Line] = []
    for line in examine(_places(home)):
        lines.append(line)
        if not json:
            print(f"{line.verdict:<7} {line.check}: {line.text}" + (f"\n        mend: {line.mend}" if line.mend else ""), flush=True)
    connection, settings = discover(), origins(home)
    if json:
        show.as_json({**as_json(lines, settings), "url": connection.url, "url_from": connection.url_from, "key_from": connection.key_from})
    else:
        for setting in settings:
            print(f"setting {setting.name} = {setting.value} (from {setting.origin})")
        print(f"client  {connection.url} (from {connection.url_from}), key from {connection.key_from}")
    return 2 if any(line.verdict is Verdict.BROKEN for line in lines) else 0


def quickstart(context: typer.Context) -> object:
    """From nothing to a real project's tests in a sandbox, in one command."""
    from corral.quickstart import main

    return main(context.args)


def test(context: typer.Context) -> object:
    """Run Corral's own tests (from a clone: `./corral test`)."""
    import subprocess
    import sys

    from corral.errors import SetupError

    root = Path(__file__).resolve().parents[3]
    script = root / "scripts" / "check.py"
    if not script.exists():
        raise SetupError("the tests are not part of an installed package", hint="clone the repository and run `./corral test`")
    return subprocess.run([sys.executable, str(script), *context.args], check=False).returncode


def bench(
    figure: Annotated[
        str | None,
        typer.Argument(
            help="tti, exec, echo, files, cold, snapshot, pause, fork, burst, hostile, image, egress, preview, thaw or density [default: the first five]."
        ),
    ] = None,
    *,
    n: Annotated[int | None, typer.Option("-n", "--n", help="How many times.")] = None,
    image: Annotated[str | None, typer.Option(help="Of the sandboxes [default: tiny; base for pause and fork, which need Python].")] = None,
    size: Annotated[int, typer.Option(help="MiB, for files.")] = 1024,
    json: options.Json = False,
) -> int:
    """Measure this machine through the real client and server."""
    from corral.bench import main

    return main(figure, n=n, image=image, size=size, json=json)


def _places(home: Path | None) -> Places:
    from corral.places import Places, default_home

    return Places(home.absolute() if home else default_home())
