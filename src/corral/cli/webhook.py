"""`corral webhook`."""

from __future__ import annotations

from typing import Annotated

import typer

from corral.cli import options, show

webhook = typer.Typer(help="Where signed requests tell what happens to sandboxes.", no_args_is_help=True, rich_markup_mode=None)


@webhook.command("create")
def create(
    url: str,
    *,
    kind: Annotated[list[str] | None, typer.Option("--kind", help="Of which events, such as sandbox.created; may be given again.")] = None,
    tag: options.TagFilter = None,
    name: Annotated[str, typer.Option(help="For people.")] = "",
    json: options.Json = False,
) -> None:
    """Have events told to a URL from now on; prints what requests are signed with, this once."""
    from corral import Client

    with Client() as client:
        made = client.webhooks.create(url, kinds=kind or None, tags=options.pairs(tag), name=name)
    if json:
        show.as_json(made)
    else:
        show.fields({"id": made.id, "kinds": ",".join(made.kinds), "secret": made.secret})


@webhook.command("ls")
def ls(*, json: options.Json = False) -> None:
    """List webhooks, without their secrets."""
    from corral import Client

    with Client() as client:
        found = client.webhooks.list()
    if json:
        show.as_json(found)
    else:
        rows = [(one.id, one.name, one.url, ",".join(one.kinds), "yes" if one.enabled else "no", show.ago(one.created_at)) for one in found]
        show.table(("id", "name", "url", "kinds", "enabled", "age"), rows)


@webhook.command("rm")
def rm(webhooks: Annotated[list[str], typer.Argument(metavar="WEBHOOK...", help="Their ids.")]) -> None:
    """Tell nothing there any more."""
    from corral import Client

    with Client() as client:
        for id in webhooks:
            client.webhooks.delete(id)
