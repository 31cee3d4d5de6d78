"""`corral volume`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from corral.cli import copy, options, show

if TYPE_CHECKING:
    from corral.sdk._sync.volume_files import VolumeFiles

volume = typer.Typer(help="Storage that sandboxes share and that outlives them.", no_args_is_help=True, rich_markup_mode=None)

Place = Annotated[str, typer.Argument(metavar="PLACE", help="A local path, or VOLUME:PATH. `-` is standard input or output.")]


@volume.command("create")
def volume_create(name: str, *, size: Annotated[int, typer.Option(help="MiB it can hold.")] = 1024, json: options.Json = False) -> None:
    """Make an empty volume."""
    from corral import Client

    with Client() as client:
        made = client.volumes.create(name, size=size)
    if json:
        show.as_json(made.info)
    else:
        print(made.id)


@volume.command("ls")
def volume_ls(*, json: options.Json = False) -> None:
    """List volumes, and who has them."""
    from corral import Client

    with Client() as client:
        found = [one.info for one in client.volumes.list()]
    if json:
        show.as_json(found)
    else:
        rows = [(one.id, one.name, f"{one.size} MiB", len(one.sandboxes), show.ago(one.created_at)) for one in found]
        show.table(("id", "name", "size", "sandboxes", "age"), rows)


@volume.command("rm")
def volume_rm(volumes: Annotated[list[str], typer.Argument(metavar="VOLUME...", help="Names or ids.")]) -> None:
    """Delete volumes with everything in them. Refused while a sandbox has one."""
    from corral import Client

    with Client() as client:
        for name in volumes:
            client.volumes.get(name).delete()


@volume.command("clone")
def volume_clone(
    source: Annotated[str, typer.Argument(help="Its name or id.")], name: Annotated[str, typer.Argument(help="Of the copy.")], *, json: options.Json = False
) -> None:
    """Make a new volume with what is in another one now."""
    from corral import Client

    with Client() as client:
        made = client.volumes.create(name, source=source)
    if json:
        show.as_json(made.info)
    else:
        print(made.id)


@volume.command("attach")
def volume_attach(
    sandbox: options.Box,
    what: Annotated[str, typer.Argument(metavar="NAME:PATH[:ro]", help="Which volume, and where it appears.")],
    *,
    sub_path: Annotated[str, typer.Option(metavar="DIRECTORY", help="Only this directory of it.")] = "",
    json: options.Json = False,
) -> None:
    """Have a volume appear in a sandbox: at once, or when it starts, if it is stopped."""
    from corral import Client, Volume

    ((path, named),) = options.volumes([what]).items()
    with Client() as client:
        box = client.sandboxes.get(sandbox)
        box.attach(path, Volume.named(named.ref, read_only=named.read_only, sub_path=sub_path))
    if json:
        show.as_json(box.info)


@volume.command("detach")
def volume_detach(sandbox: options.Box, path: Annotated[str, typer.Argument(help="Where it appears.")], *, json: options.Json = False) -> None:
    """Take a volume away from a sandbox."""
    from corral import Client

    with Client() as client:
        box = client.sandboxes.get(sandbox)
        box.detach(path)
    if json:
        show.as_json(box.info)


@volume.command("files")
def volume_files(
    place: Annotated[str, typer.Argument(metavar="VOLUME[:PATH]", help="Whose files, or those of which directory.")],
    *,
    depth: Annotated[int, typer.Option(min=1, max=64, help="Also of directories so far below.")] = 1,
    json: options.Json = False,
) -> None:
    """List what is in a volume, without a sandbox."""
    from corral import Client

    name, _, path = place.partition(":")
    with Client() as client:
        found = client.volumes.get(name).files.list(path or "/", depth=depth)
    if json:
        show.as_json(found)
    else:
        show.table(
            ("mode", "owner", "size", "age", "path"),
            [(f"{one.mode:04o}", f"{one.uid}:{one.gid}", one.size, show.ago(one.modified_at), one.path) for one in found],
        )


@volume.command("cp")
def volume_cp(source: Place, target: Place, *, json: options.Json = False) -> None:
    """Copy a file or a directory into a volume or out of it, without a sandbox."""
    from corral import Client

    inside, outside = copy.split(source), copy.split(target)
    if (inside is None) == (outside is None):
        raise options.WrongUse("one of the two places is VOLUME:PATH, the other one is local")
    name, path = inside or outside or ("", "")
    with Client() as client:
        files = client.volumes.get(name).files
        if outside is None:
            _out(files, name, path, target)
        else:
            path = _into(files, name, source, path)
    if json:
        show.as_json({"volume": name, "path": path if outside is not None else target})


def _out(files: VolumeFiles, name: str, path: str, local: str) -> None:
    if local == "-":
        for piece in files.pieces(path):
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
    else:
        with show.progress(f"{name}:{path} → {local}", None) as step:
            files.download(path, local, on_bytes=step)


def _into(files: VolumeFiles, name: str, local: str, path: str) -> str:
    """Returns where it is now."""
    if local == "-":
        files.write(path, sys.stdin.buffer)
        return path
    source = Path(local)
    if not source.is_dir() and (path.endswith(("/", ".")) or (files.exists(path) and files.stat(path).type == "directory")):
        path = f"{path.rstrip('/')}/{source.name}"
    with show.progress(f"{local} → {name}:{path}", source) as step:
        files.upload(source, path, on_bytes=step)
    return path
