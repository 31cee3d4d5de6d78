"""`corral key`, `corral project`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from corral.cli import options, show

key = typer.Typer(help="API keys.", no_args_is_help=True, rich_markup_mode=None)
project = typer.Typer(help="Projects: units of ownership and quota.", no_args_is_help=True, rich_markup_mode=None)

Limit = Annotated[int | None, typer.Option(help="[default: no limit]")]


@key.command("create")
def key_create(
    name: Annotated[str, typer.Argument(help="What it is for.")],
    *,
    project: Annotated[str, typer.Option(help="Whose.")] = "default",
    role: Annotated[str, typer.Option(metavar="admin|member|reader", help="What it may do.")] = "member",
    ssh: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A public key of SSH, such as ~/.ssh/id_ed25519.pub: its owner logs in to sandboxes.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Make a key. Its value is shown this once."""
    from corral import Client

    with Client() as client:
        made = client.keys.create(name, project=project, role=role, public_key=None if ssh is None else ssh.read_text())
    if json:
        show.as_json(made)
    else:
        print(made.value)


@key.command("ls")
def key_ls(*, json: options.Json = False) -> None:
    """List keys."""
    from corral import Client

    with Client() as client:
        keys = client.keys.list()
    if json:
        show.as_json(keys)
    else:
        rows = [(one.id, one.name, one.project, one.role, show.ago(one.created_at), "revoked" if one.revoked_at else "") for one in keys]
        show.table(("id", "name", "project", "role", "age", "state"), rows)


@key.command("rm")
def key_rm(id: Annotated[str, typer.Argument(metavar="KEY", help="Its id.")]) -> None:
    """Revoke a key, at once."""
    from corral import Client

    with Client() as client:
        client.keys.delete(id)


@project.command("create")
def project_create(
    name: str,
    *,
    max_sandboxes: Limit = None,
    max_cpu: Annotated[float | None, typer.Option(help="Cores [default: no limit].")] = None,
    max_memory: Annotated[int | None, typer.Option(help="MiB [default: no limit].")] = None,
    max_disk: Annotated[int | None, typer.Option(help="MiB [default: no limit].")] = None,
    json: options.Json = False,
) -> None:
    """Make a project."""
    from corral import Client

    with Client() as client:
        made = client.projects.create(name, max_sandboxes=max_sandboxes, max_cpu=max_cpu, max_memory=max_memory, max_disk=max_disk)
    if json:
        show.as_json(made)
    else:
        print(made.name)


@project.command("ls")
def project_ls(*, json: options.Json = False) -> None:
    """List projects and their limits."""
    from corral import Client

    with Client() as client:
        projects = client.projects.list()
    if json:
        show.as_json(projects)
    else:
        rows = [(one.name, one.max_sandboxes, one.max_cpu, one.max_memory, one.max_disk, show.ago(one.created_at)) for one in projects]
        show.table(("name", "sandboxes", "cpu", "memory", "disk", "age"), rows)


@project.command("rm")
def project_rm(name: str) -> None:
    """Remove a project without living sandboxes."""
    from corral import Client

    with Client() as client:
        client.projects.delete(name)
