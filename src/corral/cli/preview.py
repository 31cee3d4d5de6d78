"""`corral preview`, `corral port-forward`, `corral expose`, `corral hold`: ports of a sandbox from outside, and of others from inside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from corral.cli import options, show

if TYPE_CHECKING:
    from corral import Sandbox


def preview(
    sandbox: options.Box,
    port: Annotated[int | None, typer.Argument(help="A port; without one, those that something listens on.")] = None,
    *,
    public: Annotated[bool | None, typer.Option("--public/--private", help="Let anybody who has the URL see it, or only those with a key or link.")] = None,
    host: Annotated[str | None, typer.Option(metavar="NAME", help="What its server is told as Host; empty: the URL's again.")] = None,
    expires: Annotated[float | None, typer.Option(metavar="SECONDS", help="Print a link that needs no key for so long.")] = None,
    path: Annotated[str, typer.Option(help="What the link opens: this path and those below it.")] = "/",
    rotate: Annotated[bool, typer.Option("--rotate-token", help="End all links and cookies of this sandbox.")] = False,
    json: options.Json = False,
) -> None:
    """Print the URL of a port, or change who may see it."""
    from corral import Client

    if port is None and (public is not None or host is not None or expires is not None):
        raise options.WrongUse("name the port")
    if path != "/" and expires is None:
        raise options.WrongUse("--path is about a link: give --expires, too")
    with Client() as client:
        box = client.sandboxes.get(sandbox)
        if rotate:
            box.preview_token(rotate=True)
        if port is None:
            if not rotate:
                _list(box, json=json)
            return
        found = box.preview(port)
        if public is not None or host is not None:
            found.set(public=public, host=host)
        link = None if expires is None else found.signed(expires=expires, path=path)
    if json:
        show.as_json({**show.plain(found.info), "link": link})
    else:
        print(link or found.url)


def _list(box: Sandbox, *, json: bool) -> None:
    listening = {one.port: one for one in box.ports()}
    found = [box.preview(port).info for port in listening]
    if json:
        show.as_json(found)
    else:
        rows = [(one.port, listening[one.port].process or "", "public" if one.public else "private", one.url) for one in found]
        show.table(("port", "process", "access", "url"), rows)


def port_forward(
    sandbox: options.Box,
    ports: Annotated[
        list[str], typer.Argument(metavar="[LOCAL:]PORT...", help="Ports inside, and where they appear here: the same unless given; 0: any free one.")
    ],
    *,
    address: Annotated[str, typer.Option(help="Local address to listen on.")] = "127.0.0.1",
) -> None:
    """Give ports of a sandbox local addresses, any TCP, until Ctrl-C."""
    import sys
    from contextlib import ExitStack
    from threading import Event

    from corral import Client
    from corral.errors import InvalidArgument

    wanted = [_pair(word) for word in ports]
    with ExitStack() as stack:
        client = stack.enter_context(Client())
        box = client.sandboxes.get(sandbox)
        for local, remote in wanted:
            try:
                tunnel = stack.enter_context(box.tunnel(remote, local_port=local, host=address))
            except OSError as error:
                raise InvalidArgument(f"can't listen on {address}:{local}: {error.strerror}", hint="choose another local port") from None
            print(f"{tunnel.address} → {box.id}:{remote}")
        sys.stdout.flush()
        Event().wait()


def _pair(word: str) -> tuple[int, int]:
    local, colon, remote = word.rpartition(":")
    if not remote.isdecimal() or (colon and not local.isdecimal()):
        raise options.WrongUse(f"{word!r} is not PORT or LOCAL:PORT")
    return int(local) if colon else int(remote), int(remote)


def expose(
    sandbox: options.Box,
    server: Annotated[str, typer.Argument(metavar="[HOST:]PORT", help="A server out here.")],
    *,
    as_: Annotated[str, typer.Option("--as", metavar="NAME[:PORT]", help="What it is called inside.")],
) -> None:
    """Let programs in a sandbox reach a server out here by a name, until Ctrl-C, or until the sandbox is paused or stopped."""
    import sys

    from corral import Client

    host, _, port = server.rpartition(":")
    if not port.isdecimal() or not as_.rpartition(":")[2]:
        raise options.WrongUse(f"{server!r} as {as_!r} is not [HOST:]PORT as NAME[:PORT]")
    with Client() as client:
        box = client.sandboxes.get(sandbox)
        with box.expose(int(port), as_=as_, host=host or "127.0.0.1") as offered:
            print(f"{offered.name}:{offered.port} in {box.id} → {host or '127.0.0.1'}:{port}")
            sys.stdout.flush()
            offered.wait()
            if offered.failure is not None:
                raise offered.failure


def hold(
    sandbox: options.Box,
    seconds: Annotated[float, typer.Argument(help="From now; 0 ends an earlier one.")],
    *,
    reason: Annotated[str, typer.Option(help="For the event that tells of it.")] = "",
) -> None:
    """Keep a sandbox awake for a while, as if it were used."""
    from corral import Client

    with Client() as client:
        client.sandboxes.get(sandbox).hold(seconds, reason)
