"""`corral volume`."""

from __future__ import annotations

from typing import Annotated

import typer

from corral.cli import copy, options, show

volume = typer.Typer(help="Storage that sandboxes share and that outlives them.", no_args_is_help=True, rich_markup_mode=None)

_AT = "/volume"
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


@volume.command("cp")
def volume_cp(source: Place, target: Place, *, json: options.Json = False) -> None:
    """Copy a file or a directory into a volume or out of it, by way of a sandbox of this moment."""
    from corral import Client, Volume

    inside, outside = copy.split(source), copy.split(target)
    if (inside is None) == (outside is None):
        raise options.WrongUse("one of the two places is VOLUME:PATH, the other one is local")
    name, path = inside or outside or ("", "")
    within = _AT if path in (".", "/") else f"{_AT}/{path.strip('/')}{'/' if path.endswith('/') else ''}"
    with Client() as client, client.sandboxes.create("tiny", volumes={_AT: Volume.named(name, read_only=outside is None)}, timeout=None) as sandbox:
        done = copy.out(sandbox, within, target) if outside is None else copy.into(sandbox, source, within, None)
    if json:
        show.as_json({**done, "sandbox": None, "volume": name, "path": done["path"] if outside is None else path})
