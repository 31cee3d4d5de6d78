"""`corral chaos`: does it keep its promises while everything is killed?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from corral.cli import options, show


def chaos(
    *,
    minutes: Annotated[float, typer.Option(help="Of fire, in rounds of half a minute.")] = 1.0,
    seed: Annotated[int, typer.Option(help="The plan: the same one again, as far as concurrency allows.")] = 1,
    clients: Annotated[int, typer.Option(help="That work at the same time.")] = 4,
    interval: Annotated[float, typer.Option(metavar="SECONDS", help="Between two kills or cuts, on average.")] = 3.0,
    patience: Annotated[float, typer.Option(metavar="SECONDS", help="After which something is held to hang.")] = 60.0,
    home: Annotated[Path | None, typer.Option(help="The home whose images are used [default: $CORRAL_HOME, else /var/lib/corral for root].")] = None,
    log: Annotated[Path | None, typer.Option(help="Keep the server's log in this file.")] = None,
    json: options.Json = False,
) -> int:
    """Work in sandboxes of a server of its own while server, sandboxes and connections are killed at random; exits with 1 when a promise was broken."""
    from corral.chaos import Wanted, main
    from corral.places import Places, default_home

    shared = Places(home.absolute() if home else default_home())
    wanted = Wanted(seconds=minutes * 60, seed=seed, shared=shared, clients=clients, interval=interval, patience=patience, log=log)
    document = main(wanted, quiet=json)
    if json:
        show.as_json(document)
    else:
        _print(document)
    return 1 if document["violations"] else 0


def _print(document: dict[str, Any]) -> None:
    for title in ("did", "done_to_it", "refused", "checked"):
        show.table((title.replace("_", " "), "times"), [[name, times] for name, times in document[title].items()])
        print()
    for violation in document["violations"]:
        print(f"violation: {violation['kind']} at {violation['step']} ({violation['at']} s): {violation['detail']}")
    for line in document["errors_logged"]:
        print(f"logged by the server as an error: {line}")
    print(f"{len(document['violations'])} violations in {document['seconds']} s with seed {document['seed']}")
