"""`corral cp`: files and directories in and out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from corral.cli import options, show

if TYPE_CHECKING:
    from corral import Sandbox

Place = Annotated[str, typer.Argument(metavar="PLACE", help="A local path, or SANDBOX:PATH. `-` is standard input or output.")]


def cp(source: Place, target: Place, *, user: options.User = None, json: options.Json = False) -> None:
    """Copy a file or a directory into a sandbox or out of it."""
    from corral import Client

    inside, outside = split(source), split(target)
    if (inside is None) == (outside is None):
        raise options.WrongUse("one of the two places is SANDBOX:PATH, the other one is local")
    with Client() as client:
        if outside is not None:
            sandbox = client.sandboxes.get(outside[0])
            done = into(sandbox, source, outside[1], user)
        else:
            assert inside is not None
            if user:
                raise options.WrongUse("--user is for copying in")
            sandbox = client.sandboxes.get(inside[0])
            done = out(sandbox, inside[1], target)
    if json:
        show.as_json(done)


def split(place: str) -> tuple[str, str] | None:
    """SANDBOX and PATH; None for a local path (one with a slash before any colon is local, as with scp)."""
    box, colon, path = place.partition(":")
    if not colon or not box or "/" in box or box == ".":
        return None
    return box, path or "."


def into(sandbox: Sandbox, local: str, remote: str, user: str | None) -> dict[str, object]:
    if local == "-":
        sandbox.files.write(remote, sys.stdin.buffer, user=user)
    else:
        path = Path(local)
        if not path.is_dir() and (remote.endswith(("/", ".")) or _is_directory(sandbox, remote)):
            remote = f"{remote.rstrip('/')}/{path.name}"
        with show.progress(f"{local} → {sandbox.name or sandbox.id}:{remote}", path) as step:
            sandbox.files.upload(path, remote, user=user, on_bytes=step)
    return {"sandbox": sandbox.id, "path": remote}


def out(sandbox: Sandbox, remote: str, local: str) -> dict[str, object]:
    if local == "-":
        for piece in sandbox.files.pieces(remote):
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
    else:
        with show.progress(f"{sandbox.name or sandbox.id}:{remote} → {local}", None) as step:
            sandbox.files.download(remote, local, on_bytes=step)
    return {"sandbox": sandbox.id, "path": local}


def _is_directory(sandbox: Sandbox, path: str) -> bool:
    from corral.errors import NotFound

    try:
        return sandbox.files.stat(path).type == "directory"
    except NotFound:
        return False
