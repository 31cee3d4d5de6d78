"""`corral service`: programs that a sandbox keeps running."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from corral.cli import options, show

if TYPE_CHECKING:
    from corral.schema.service import Service

service = typer.Typer(help="Services: programs that a sandbox keeps running.", no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The service's.")]
PROBES = ("port", "url", "file", "process", "command", "seconds")


@service.command("set")
def service_set(
    sandbox: options.Box,
    name: Name,
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND...", help="A program and its arguments; one word alone is a text for the shell.")],
    *,
    env: options.Env = None,
    workdir: options.Workdir = None,
    user: options.User = None,
    needs: Annotated[list[str] | None, typer.Option(metavar="NAME", help="A service that must be ready before; may be given again.")] = None,
    ready: Annotated[str | None, typer.Option(metavar="|".join(f"{one}=…" for one in PROBES), help="How it is known that it is ready.")] = None,
    ready_timeout: Annotated[float, typer.Option(metavar="SECONDS", help="Not ready after so long it has failed.")] = 60,
    restart: Annotated[str, typer.Option(metavar="always|on-failure|never", help="When it is started again after it has ended.")] = "always",
    http_port: Annotated[int | None, typer.Option(metavar="PORT", help="Start it at the first request to this port's preview.")] = None,
    disabled: Annotated[bool, typer.Option("--disabled", help="Not started until it is asked to.")] = False,
    json: options.Json = False,
) -> None:
    """Keep a program running from now on, in place of an earlier one of that name."""
    from corral import Client

    with Client() as client:
        found = client.sandboxes.get(sandbox).services.set(
            name,
            command[0] if len(command) == 1 else command,
            env=options.pairs(env, environment=True),
            cwd=workdir,
            user=user,
            needs=needs or (),
            ready=None if ready is None else {**_probe(ready), "timeout": ready_timeout},
            restart=restart,
            http_port=http_port,
            enabled=not disabled,
        )
    _tell(found, json=json)


@service.command("ls")
def service_ls(sandbox: options.Box, *, json: options.Json = False) -> None:
    """List its services and how they are."""
    from corral import Client

    with Client() as client:
        services = client.sandboxes.get(sandbox).services.list()
    if json:
        show.as_json(services)
    else:
        rows = [(one.name, one.state, one.restarts, "" if one.exit_code is None else one.exit_code, one.process or "", one.detail or "") for one in services]
        show.table(("name", "state", "restarts", "exit", "process", "detail"), rows)


@service.command("start")
def service_start(sandbox: options.Box, name: Name, *, json: options.Json = False) -> None:
    """Start one that was stopped, has ended or has failed."""
    from corral import Client

    with Client() as client:
        found = client.sandboxes.get(sandbox).services.start(name)
    _tell(found, json=json)


@service.command("stop")
def service_stop(sandbox: options.Box, name: Name, *, json: options.Json = False) -> None:
    """Stop one; it stays so until it is started."""
    from corral import Client

    with Client() as client:
        found = client.sandboxes.get(sandbox).services.stop(name)
    _tell(found, json=json)


@service.command("rm")
def service_rm(sandbox: options.Box, name: Name) -> None:
    """Stop one and forget it."""
    from corral import Client

    with Client() as client:
        client.sandboxes.get(sandbox).services.remove(name)


@service.command("logs")
def service_logs(
    sandbox: options.Box,
    name: Name,
    *,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until its process ends.")] = False,
    all: Annotated[bool, typer.Option("--all", help="Begin with what its earlier processes said, as far as that is kept.")] = False,
) -> int:
    """The output of its newest process."""
    from corral import Client
    from corral.cli import look
    from corral.errors import InvalidState

    with Client() as client:
        box = client.sandboxes.get(sandbox)
        found = box.services.get(name)
        earlier = [one.id for one in box.processes() if one.tag == f"service:{name}" and one.id != found.process] if all else []
    if found.process is None and not earlier:
        raise InvalidState(f"the service {name} has not run yet", hint=f"it is {found.state}; `corral service start` starts it")
    for process in earlier:
        look.logs(sandbox, process, follow=False, json=False)
    return 0 if found.process is None else look.logs(sandbox, found.process, follow=follow, json=False)


def _tell(found: Service, *, json: bool) -> None:
    if json:
        show.as_json(found)
    else:
        print(f"{found.name} {found.state}{f': {found.detail}' if found.detail else ''}")


def _probe(word: str) -> dict[str, str]:
    kind, equals, value = word.partition("=")
    if not equals or kind not in PROBES:
        raise options.WrongUse(f"--ready {word}: say one of {', '.join(f'{one}=…' for one in PROBES)}")
    return {kind: value}
