"""`corral snapshot`, `corral checkpoint`, `corral diff`, `corral rewind`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from corral.cli import options, show

if TYPE_CHECKING:
    from corral import Snapshot

snapshot = typer.Typer(help="Disks of sandboxes kept as images.", no_args_is_help=True, rich_markup_mode=None)
checkpoint = typer.Typer(help="The history of a sandbox's disk.", no_args_is_help=True, rich_markup_mode=None)

_LETTERS = {"added": "A", "changed": "M", "removed": "D"}
Checkpoint = Annotated[str, typer.Argument(metavar="CHECKPOINT", help="Its name or id.")]


@snapshot.command("create")
def snapshot_create(
    sandbox: options.Box,
    name: Annotated[str | None, typer.Argument(help="To use it by.")] = None,
    *,
    memory: Annotated[bool, typer.Option("--memory", help="Its processes and their memory too.")] = False,
    json: options.Json = False,
) -> None:
    """Keep a sandbox's disk as an image; the sandbox goes on. Prints its id."""
    from corral import Client

    with Client() as client:
        _print(client.sandboxes.get(sandbox).snapshot(name, memory=memory), json=json)


@snapshot.command("ls")
def snapshot_ls(
    *,
    sandbox: Annotated[str | None, typer.Option(metavar="SANDBOX", help="Only those of this one, by its id.")] = None,
    shared: Annotated[bool, typer.Option("--shared", help="Those that other projects share with yours.")] = False,
    json: options.Json = False,
) -> None:
    """List snapshots, the newest first."""
    from corral import Client

    with Client() as client:
        _table(list(client.snapshots.list(sandbox=sandbox, shared=shared)), json=json)


@snapshot.command("share")
def snapshot_share(
    name: Annotated[str, typer.Argument(metavar="SNAPSHOT", help="Its id or name.")],
    projects: Annotated[list[str] | None, typer.Argument(metavar="[PROJECT]...", help="All that may use it from now on [default: none].")] = None,
    *,
    json: options.Json = False,
) -> None:
    """Let other projects start sandboxes of a snapshot, by its id. Prints the id."""
    from corral import Client

    with Client() as client:
        found = client.snapshots.get(name)
        found.share(*(projects or ()))
        _print(found, json=json)


@snapshot.command("rm")
def snapshot_rm(
    snapshots: Annotated[list[str], typer.Argument(metavar="SNAPSHOT...", help="Ids or names.")],
    *,
    cascade: Annotated[bool, typer.Option("--cascade", help="Also the snapshots that stand on it; sandboxes go on.")] = False,
) -> None:
    """Delete snapshots. Refused while something stands on them."""
    from corral import Client

    with Client() as client:
        for name in snapshots:
            client.snapshots.get(name).delete(cascade=cascade)


@checkpoint.command("create")
def checkpoint_create(sandbox: options.Box, name: Annotated[str, typer.Argument(help="To find it by.")], *, json: options.Json = False) -> None:
    """Keep a sandbox's disk in its own history; the sandbox goes on. Prints its id."""
    from corral import Client

    with Client() as client:
        _print(client.sandboxes.get(sandbox).checkpoint(name), json=json)


@checkpoint.command("ls")
def checkpoint_ls(sandbox: options.Box, *, json: options.Json = False) -> None:
    """List a sandbox's checkpoints, the oldest first."""
    from corral import Client

    with Client() as client:
        _table(client.sandboxes.get(sandbox).checkpoints(), json=json)


@checkpoint.command("rm")
def checkpoint_rm(sandbox: options.Box, checkpoints: Annotated[list[str], typer.Argument(metavar="CHECKPOINT...", help="Names or ids.")]) -> None:
    """Forget checkpoints."""
    from corral import Client
    from corral.errors import NotFound

    with Client() as client:
        there = client.sandboxes.get(sandbox).checkpoints()
        for wanted in checkpoints:
            found = next((one for one in there if wanted in (one.id, one.name)), None)
            if found is None:
                raise NotFound(f"there is no checkpoint {wanted!r} of {sandbox}", hint=f"`corral checkpoint ls {sandbox}` lists those there are")
            found.delete()


def diff(
    sandbox: options.Box,
    before: Annotated[str | None, typer.Argument(help="A checkpoint or snapshot [default: its image].")] = None,
    after: Annotated[str | None, typer.Argument(help="The same [default: now].")] = None,
    *,
    text: Annotated[bool, typer.Option("--text", "-u", help="With the lines that differ.")] = False,
    limit: Annotated[int, typer.Option(help="Greatest number of changes.")] = 10_000,
    json: options.Json = False,
) -> None:
    """Tell what changed on a sandbox's disk: A added, M changed, D removed, with the bytes before and after."""
    from corral import Client

    with Client() as client:
        found = client.sandboxes.get(sandbox).diff(before, after, text=text, limit=limit)
    if json:
        show.as_json(found)
        return
    for change in found.changes:
        sizes = " → ".join("" if size is None else show.size(size) for size in (change.size_before, change.size_after)).strip(" →")
        print(f"{_LETTERS[change.change]} {change.path}{'/' if change.type == 'directory' else ''}{f'  {sizes}' if sizes else ''}")
        if change.text:
            print(change.text, end="" if change.text.endswith("\n") else "\n")
    if found.incomplete:
        print("… and more")


def rewind(sandbox: options.Box, name: Checkpoint, *, json: options.Json = False) -> None:
    """Put a sandbox's disk back to a checkpoint. What it is now is kept first; everything that runs in it ends."""
    from corral import Client

    with Client() as client:
        box = client.sandboxes.get(sandbox)
        box.rewind(name)
        if json:
            show.as_json(box.info)
        else:
            print(box.id)


def merge(
    sandbox: options.Box,
    name: Annotated[str, typer.Argument(metavar="SNAPSHOT", help="Of a fork: its name or id.")],
    *,
    base: Annotated[str | None, typer.Option(metavar="SNAPSHOT", help="What both come from [default: found by itself].")] = None,
    on_conflict: Annotated[str, typer.Option(metavar="refuse|keep|take", help="What is done with what both have changed.")] = "refuse",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell.")] = False,
    json: options.Json = False,
) -> None:
    """Take over what a fork of a sandbox has changed. What both have changed is listed with C, and not overwritten unless asked for."""
    from corral import Client

    if on_conflict not in ("refuse", "keep", "take"):
        raise options.WrongUse(f"--on-conflict is refuse, keep or take, not {on_conflict!r}")
    with Client() as client:
        done = client.sandboxes.get(sandbox).merge(name, base=base, on_conflict=on_conflict, dry_run=dry_run)
    if json:
        show.as_json(done)
        return
    for change in done.changes:
        print(f"{_LETTERS[change.change]} {change.path}{'/' if change.type == 'directory' else ''}")
    for conflict in done.conflicts:
        print(f"C {conflict.path}  {conflict.why}")


def _print(made: Snapshot, *, json: bool) -> None:
    if json:
        show.as_json(made.info)
    else:
        print(made.id)


def _table(found: list[Snapshot], *, json: bool) -> None:
    if json:
        show.as_json([one.info for one in found])
    else:
        show.table(
            ("id", "name", "sandbox", "size", "memory", "age"),
            [(one.id, one.name, one.info.sandbox, show.size(one.size), show.size(one.memory) if one.memory else "", show.ago(one.created_at)) for one in found],
        )
