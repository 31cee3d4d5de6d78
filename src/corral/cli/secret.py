"""`corral secret`."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from corral.cli import options, show

secret = typer.Typer(help="Secrets: values that are used on a sandbox's behalf.", no_args_is_help=True, rich_markup_mode=None)


@secret.command("create")
def create(
    name: str,
    *,
    from_env: Annotated[str | None, typer.Option(metavar="VARIABLE", help="Take the value of this variable of yours.")] = None,
    value: Annotated[str | None, typer.Option(help="The value itself; others can see it in the list of processes.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Give an existing one another value.")] = False,
    tag: options.Tag = None,
    json: options.Json = False,
) -> None:
    """Make a secret. Its value is read from standard input, asked for on a terminal."""
    from corral import Client

    if from_env is not None and value is not None:
        raise options.WrongUse("--from-env and --value don't go together")
    if value is not None:
        print("corral: --value can be seen by others on this machine, and in your shell's history; give it on standard input", file=sys.stderr)
    given = value if value is not None else _read(name, from_env)
    with Client() as client:
        tags = options.pairs(tag) if tag else None
        made = client.secrets.change(name, given, tags=tags) if replace else client.secrets.create(name, given, tags=tags)
    if json:
        show.as_json(made.info)
    else:
        print(made.name)


@secret.command("ls")
def ls(*, json: options.Json = False) -> None:
    """List secrets, without their values."""
    from corral import Client

    with Client() as client:
        found = [one.info for one in client.secrets.list() if one.info is not None]
    if json:
        show.as_json(found)
    else:
        rows = [(one.name, one.version, show.ago(one.created_at), show.ago(one.changed_at), show.ago(one.used_at)) for one in found]
        show.table(("name", "version", "age", "changed", "used"), rows)


@secret.command("rm")
def rm(name: str) -> None:
    """Forget a secret that no living sandbox uses."""
    from corral import Client

    with Client() as client:
        client.secrets.delete(name)


def _read(name: str, variable: str | None) -> str:
    if variable is not None:
        if variable not in os.environ:
            raise options.WrongUse(f"there is no variable {variable} in your environment")
        return os.environ[variable]
    if sys.stdin.isatty():
        from getpass import getpass

        return getpass(f"value of {name}: ")
    text = sys.stdin.read()
    # What `echo` and editors put at the end of one line is none of the value; several lines are as they are.
    return text[:-1] if text.count("\n") == 1 and text.endswith("\n") else text
