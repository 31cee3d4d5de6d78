"""`corral up` and `corral down`: the server of this machine."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from corral.cli import options, show

if TYPE_CHECKING:
    from corral.server import Started
    from corral.settings import Settings

Home = Annotated[Path | None, typer.Option(help="Where Corral keeps its state [default: $CORRAL_HOME, else /var/lib/corral for root].")]

LEAVE_SECONDS = 120.0
"""How long a server that leaves may take from the end of one sandbox to the end of the next, or to its own."""
START_SECONDS = 180.0
"""How long a server may take until it is ready: it adopts what lives and makes its first pool members."""


def up(
    *,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Start it in the background, wait until it is ready.")] = False,
    host: Annotated[str | None, typer.Option(help="Address to listen on [default: 127.0.0.1].")] = None,
    port: Annotated[int | None, typer.Option(help="0: any free one [default: 7070].")] = None,
    edge_port: Annotated[int | None, typer.Option(help="Where previews are served; 0: any free one [default: 7080].")] = None,
    tls: Annotated[bool | None, typer.Option("--tls", help="Serve previews with TLS, too; `corral trust` makes this machine's browsers trust it.")] = None,
    tls_port: Annotated[int | None, typer.Option(help="Where; 0: any free one [default: 7443].")] = None,
    domain: Annotated[str | None, typer.Option(help="Previews are at {port}-{sandbox}.DOMAIN [default: corral.localhost].")] = None,
    edge_url: Annotated[
        str | None, typer.Option(metavar="URL", help="How the domain is reached through a proxy with TLS in front: https://DOMAIN[:PORT].")
    ] = None,
    ssh: Annotated[bool | None, typer.Option("--ssh/--no-ssh", help="Let SSH into sandboxes [default: yes, where asyncssh is installed].")] = None,
    ssh_port: Annotated[int | None, typer.Option(help="Where; 0: any free one [default: 2222].")] = None,
    home: Home = None,
    config: Annotated[Path | None, typer.Option(help="Its settings [default: /etc/corral/config.toml, if there].")] = None,
    listen_anywhere: Annotated[bool | None, typer.Option("--listen-anywhere", help="Allow an address that other machines reach, without TLS.")] = None,
    database: Annotated[str | None, typer.Option(metavar="URL", help="[default: SQLite in the home]")] = None,
    encrypt: Annotated[
        bool | None, typer.Option("--encrypt", help="Encrypt what sandboxes write, in a home that is new; later it stays so without being told.")
    ] = None,
    disk_key_file: Annotated[Path | None, typer.Option(help="The key to an encrypted home [default: keys/disk.key in the home, made with it].")] = None,
    disk_key_command: Annotated[
        str | None, typer.Option(metavar="COMMAND", help="A command line that prints that key, in hexadecimal digits or base64, in place of the file.")
    ] = None,
    terminate: Annotated[bool | None, typer.Option("--terminate", help="End all sandboxes when the server ends.")] = None,
    pool: Annotated[int | None, typer.Option(help="Sandboxes kept ready [default: by the machine's memory].")] = None,
    starts: Annotated[int | None, typer.Option(help="Sandboxes that may start at the same time [default: 8].")] = None,
    freeze: Annotated[str | None, typer.Option(metavar="auto|always|never", help="Whether idle sandboxes are frozen [default: auto].")] = None,
    runsc: Annotated[Path | None, typer.Option(help="The runsc to use [default: the first that passes its test].")] = None,
    platform: Annotated[str | None, typer.Option(metavar="systrap|kvm|ptrace", help="[default: systrap]")] = None,
    log_level: Annotated[str | None, typer.Option(metavar="debug|info|warning|error", help="[default: info]")] = None,
    log_format: Annotated[str | None, typer.Option(metavar="auto|console|json", help="[default: auto]")] = None,
    json: options.Json = False,
    ready: Annotated[int | None, typer.Option(hidden=True, help="Descriptor to say the URL on.")] = None,
) -> None:
    """Start the server. It leaves on Ctrl-C or SIGTERM; sandboxes go on living for the next one."""
    from corral.server import run
    from corral.settings import Settings

    flags: dict[str, object] = {"host": host, "port": port, "home": home, "listen_anywhere": listen_anywhere, "database": database, "terminate": terminate}
    flags |= {"tls": tls, "tls_port": tls_port, "edge_port": edge_port, "domain": domain, "edge_url": edge_url, "ssh": ssh, "ssh_port": ssh_port}
    flags |= {"pool": pool, "starts": starts, "freeze": freeze, "runsc": runsc, "platform": platform, "log_level": log_level, "log_format": log_format}
    flags |= {"encrypt": encrypt, "disk_key_file": disk_key_file and disk_key_file.absolute(), "disk_key_command": disk_key_command}
    settings = Settings.load(flags, environ=os.environ, file=config)
    if detach:
        _detached(settings, json=json)
        return

    def started(server: Started) -> None:
        _remember(server)
        if ready is not None:
            with os.fdopen(ready, "w") as pipe:
                pipe.write("\n".join([server.url, server.domain] if server.domain else [server.url]))
        else:
            _tell(server.url, server.domain, os.getpid(), settings, json=json)

    run(settings, on_ready=started)


def down(
    *,
    home: Home = None,
    keep: Annotated[bool, typer.Option("--keep-sandboxes", help="Only the server; sandboxes go on living for the next one.")] = False,
    json: options.Json = False,
) -> None:
    """End the server of this machine and all its sandboxes; their disks are kept."""
    import select
    import signal

    from corral import pidfile
    from corral.errors import Unavailable
    from corral.node import record
    from corral.settings import Settings

    settings = Settings.load({"home": home}, environ=os.environ)
    running = pidfile.occupant(settings.places)
    descriptor = -1
    if running is not None:
        try:
            descriptor = os.pidfd_open(running.pid)
        except ProcessLookupError:  # it has just ended by itself
            running = None
    if running is not None:
        try:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGTERM if keep else signal.SIGQUIT)
            left = -1
            while not select.select([descriptor], [], [], LEAVE_SECONDS)[0]:
                # Hundreds of sandboxes take minutes: as long as there are fewer each time, they end.
                before, left = left, len(record.ids(settings.places.boxes))
                if keep or left == 0 or left == before:
                    raise Unavailable(
                        f"the server (pid {running.pid}) has not ended, and no sandbox of it, within {LEAVE_SECONDS:g} s",
                        hint=f"`kill -9 {running.pid}` leaves its sandboxes to the next one",
                    )
                print(f"corral: {left} sandboxes are left", file=sys.stderr)
        finally:
            os.close(descriptor)
    elif not keep and settings.places.holder_socket.exists():
        _sweep(settings)
    if json:
        show.as_json({"home": str(settings.home), "pid": running.pid if running else None})
    elif running is None:
        print(f"corral: no server runs in {settings.home}", file=sys.stderr)


def _sweep(settings: Settings) -> None:
    """Without a server, sandboxes may still live with the holder: adopt them, and end them as a server would."""
    import asyncio

    import structlog

    from corral import logs, pidfile
    from corral.errors import CorralError, InternalError
    from corral.server import build_app

    async def adopt_and_end() -> None:
        application = build_app(settings)
        await application.open()
        await application.close(terminate=True)

    logs.configure("warning", settings.log_format)
    with pidfile.occupy(settings.places):
        try:
            asyncio.run(adopt_and_end())
        except CorralError:
            raise
        except OSError as error:
            structlog.get_logger(__name__).exception("down_failed", home=str(settings.home))
            raise InternalError(
                f"not everything of {settings.home} could be ended: {error}", hint="what failed is told above; run it again, and please report it"
            ) from error


def _detached(settings: Settings, *, json: bool) -> None:
    """The same program in a session of its own, its log in the home; returns when it takes requests."""
    import select
    import subprocess

    from corral.errors import SetupError

    given = [
        f"--{'' if value else 'no-'}{name.replace('_', '-')}"
        for name, value in _chosen(settings).items()
        if value is True or (name == "ssh" and value is False)
    ]
    given += [f"--{name.replace('_', '-')}={value}" for name, value in _chosen(settings).items() if not isinstance(value, bool)]
    log = settings.places.logs / "server.log"
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    reading, writing = os.pipe()
    with log.open("ab") as output:
        began = output.tell()
        # Not by corral.spawn, which waits for what it starts: this one is to outlive us.
        server = subprocess.Popen(
            [sys.executable, "-m", "corral", "up", f"--ready={writing}", *given],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=[writing],
            cwd="/",
        )
    os.close(writing)
    with os.fdopen(reading) as pipe:
        told = pipe.read() if select.select([pipe], [], [], START_SECONDS)[0] else None
    if told:
        url, _, domain = told.partition("\n")
        _tell(url, domain or None, server.pid, settings, json=json)
        server.returncode = 0  # it is init's child from now on: nobody here waits for it
        return
    if told is None:
        raise SetupError(f"the server (pid {server.pid}) is not ready after {START_SECONDS:g} s", hint=f"look into {log}")
    server.wait()
    with log.open("rb") as said:
        said.seek(began)
        lines = said.read().decode(errors="replace").strip().splitlines()
    raise SetupError(lines[-1].removeprefix("corral: ") if lines else f"the server ended with {server.returncode}", hint=f"its log is {log}")


def _chosen(settings: Settings) -> dict[str, object]:
    """What was not left at its default, for the program in the background."""
    return {name: getattr(settings, name) for name, origin in settings.origin.items() if origin != "default" or name == "home"}


def _remember(server: Started) -> None:
    """At the first start, tell the client's configuration; one that names another server is left alone."""
    from corral.sdk.connection import is_free, save

    if server.admin_key is not None and is_free(server.url):
        save(server.url, server.admin_key)


def _tell(url: str, domain: str | None, pid: int, settings: Settings, *, json: bool) -> None:
    """`domain`: below which sandboxes have names with TLS."""
    if json:
        show.as_json({"url": url, "pid": pid, "home": str(settings.home)})
        return
    print(f"corral: ready at {url} (pid {pid}, home {settings.home}); `corral down` ends it", flush=True)
    if domain is not None:
        print("\n".join(["corral: for E2B's clients (docs/from-e2b.md):", *_exports(domain, settings)]), flush=True)


def _exports(domain: str, settings: Settings) -> list[str]:
    """What E2B's clients need to find the server by names, to be pasted into a shell. The key itself is not printed: this may be a log."""
    import shlex

    keys = settings.places.keys
    lines = [f"export E2B_API_KEY=e2b_$(sed s/ck_// {shlex.quote(str(keys / 'admin'))})", f"export E2B_DOMAIN={shlex.quote(domain)}"]
    if settings.tls:
        authority = shlex.quote(str(keys / "edge-ca.pem"))
        lines.append(f"export SSL_CERT_FILE={authority} NODE_EXTRA_CA_CERTS={authority}")
    return lines
