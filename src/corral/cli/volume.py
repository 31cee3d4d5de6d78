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
