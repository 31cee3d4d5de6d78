"""Options that several commands share, and what their words mean."""

from __future__ import annotations

from typing import Annotated, Any, cast

import typer

from corral.errors import CorralError

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Box = Annotated[str, typer.Argument(metavar="SANDBOX", help="Its id or name.")]
Boxes = Annotated[list[str] | None, typer.Argument(metavar="SANDBOX...", help="Ids or names.")]
Words = Annotated[list[str], typer.Argument(metavar="-- COMMAND...", help="What to run, and its arguments.")]
TagFilter = Annotated[list[str] | None, typer.Option("--tag", metavar="KEY=VALUE", help="Only those with this tag; may be given again.")]

Image = Annotated[str | None, typer.Option("--image", help="Name or id of an image [default: base].")]
Name = Annotated[str | None, typer.Option(help="A name to find it by.")]
Cpu = Annotated[float, typer.Option(help="Cores.")]
Memory = Annotated[int, typer.Option(help="MiB.")]
Disk = Annotated[int, typer.Option(help="MiB it may write.")]
Pids = Annotated[int, typer.Option(help="Processes at once.")]
Timeout = Annotated[float, typer.Option(metavar="SECONDS", help="Its greatest age; 0: none.")]
IdleTimeout = Annotated[float | None, typer.Option(metavar="SECONDS", help="End it after this long without activity.")]
OnTimeout = Annotated[str, typer.Option(metavar="terminate|stop|pause", help="What happens then.")]
OnRequest = Annotated[
    str, typer.Option(metavar="resume|start", help="What a request to a preview does besides waking it: nothing more, or start it when it is stopped.")
]
Volume = Annotated[list[str] | None, typer.Option("--volume", metavar="NAME:PATH[:ro]", help="A volume, and where it appears; may be given again.")]
CheckpointEvery = Annotated[int | None, typer.Option(metavar="N", help="A checkpoint after every N commands.")]
Port = Annotated[list[int] | None, typer.Option("--port", help="A port that previews and tunnels lead to, and to no others; may be given again. Default: any.")]
PublicPort = Annotated[
    list[str] | None, typer.Option("--public-port", metavar="PORT|all", help="A port that anybody with its URL may see; may be given again.")
]
Env = Annotated[list[str] | None, typer.Option("--env", "-e", metavar="KEY=VALUE", help="Environment of its commands; KEY alone takes yours.")]
Tag = Annotated[list[str] | None, typer.Option("--tag", metavar="KEY=VALUE", help="May be given again.")]
User = Annotated[str | None, typer.Option("--user", "-u", help="Who runs its commands.")]
Workdir = Annotated[str | None, typer.Option("--workdir", "-w", help="Where they run.")]
Egress = Annotated[
    str | None,
    typer.Option(metavar="none|public|all|allow:HOST,…|@FILE", help="What it may reach: a preset, some hosts, or a policy as JSON [default: the server's]."),
]
Freeze = Annotated[bool, typer.Option("--freeze/--no-freeze", help="Whether it may sleep while nobody uses it.")]
Reserve = Annotated[bool, typer.Option("--reserve", help="Start no other on memory that it may still take.")]
Wait = Annotated[float, typer.Option(metavar="SECONDS", help="How long to wait for room on a full node.")]

PASS_ON = {"ignore_unknown_options": True, "allow_interspersed_args": False}
"""For commands whose last words are another program's."""


class WrongUse(CorralError):
    """The words of the command line don't go together."""

    code = "usage"


def pairs(words: list[str] | None, *, environment: bool = False) -> dict[str, str]:
    """`KEY=VALUE` words as a mapping. Of the environment, KEY alone takes the caller's value."""
    import os

    found: dict[str, str] = {}
    for word in words or ():
        key, equals, value = word.partition("=")
        if not key or not (equals or environment):
            raise WrongUse(f"{word!r} is not KEY=VALUE")
        if equals:
            found[key] = value
        elif key in os.environ:
            found[key] = os.environ[key]
    return found


def public_ports(words: list[str] | None) -> list[int] | str:
    """Numbers, or `all`."""
    if words == ["all"]:
        return "all"
    for word in words or ():
        if not word.isdecimal():
            raise WrongUse(f"{word!r} is neither a port nor, alone, `all`")
    return [int(word) for word in words or ()]


def egress(words: str | None) -> dict[str, Any] | str | None:
    """`public`, `allow:api.example.com,*.example.org`, or `@policy.json` (`@-`: standard input)."""
    if words is None:
        return None
    if words.startswith("allow:"):
        hosts = [host for host in words.removeprefix("allow:").split(",") if host]
        if not hosts:
            raise WrongUse("--egress allow: names no host")
        return {"rules": [{"to": hosts}]}
    if words.startswith("@"):
        return _policy(words[1:])
    if words not in ("none", "public", "all"):
        raise WrongUse(f"{words!r} is none of none, public, all, allow:HOST,… and @FILE")
    return words


def _policy(path: str) -> dict[str, Any]:
    import json
    import sys
    from pathlib import Path

    text = sys.stdin.read() if path == "-" else Path(path).read_text()
    try:
        found = json.loads(text)
    except ValueError as error:
        raise WrongUse(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise WrongUse(f"{path} is no JSON object")
    return cast("dict[str, Any]", found)


def volumes(words: list[str] | None) -> dict[str, Any]:
    """`NAME:PATH[:ro]` words by path."""
    from corral import Volume as Named

    found: dict[str, Any] = {}
    for word in words or ():
        name, colon, path = word.partition(":")
        read_only = path.endswith(":ro")
        if not name or not colon or not path:
            raise WrongUse(f"{word!r} is not NAME:PATH or NAME:PATH:ro")
        found[path.removesuffix(":ro")] = Named.named(name, read_only=read_only)
    return found


def timeout(seconds: float) -> float | None:
    """0 on the command line is no limit."""
    return seconds or None
