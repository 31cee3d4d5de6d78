"""`corral exec` and `corral shell`: commands in a sandbox that is there already."""

from __future__ import annotations

from typing import Annotated

import typer

from corral.cli import options

Terminal = Annotated[bool, typer.Option("-t", help="Give it a terminal, which is yours.")]


def execute(
    sandbox: options.Box,
    command: options.Words,
    *,
    env: options.Env = None,
    user: options.User = None,
    workdir: options.Workdir = None,
    timeout: Annotated[float | None, typer.Option(metavar="SECONDS", help="Kill it after this long.")] = None,
    terminal: Terminal = False,
    interactive: Annotated[bool, typer.Option("-i", help="Pass your input on even when it is a terminal.")] = False,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Print its id and leave it running.")] = False,
    json: options.Json = False,
) -> int:
    """Run a command in a sandbox; exits with the command's code. Signals are passed on."""
    from corral.cli import terminal as own

    if command[0] == "--":  # the parser leaves it there after another argument
        command = command[1:]
    elif command[0].startswith("-"):
        raise options.WrongUse(
            f"options such as {command[0]} go before SANDBOX, what comes after it is the command; see `corral exec --help` for --detach, -t and the rest"
        )
    if terminal and not own.both():
        raise options.WrongUse("-t needs a terminal on standard input and output")
    if detach and (terminal or interactive):
        raise options.WrongUse("--detach does not go together with -t or -i")
    if json and not detach:
        raise options.WrongUse("--json goes with --detach; the output of a command is its own")
    feed = not detach and (terminal or interactive or own.has_input())
    return _run(_Start(sandbox, command, options.pairs(env, environment=True), user, workdir, timeout, pty=terminal, feed=feed), detach=detach, json=json)


def shell(
    sandbox: options.Box,
    *,
    user: options.User = None,
    workdir: options.Workdir = None,
    program: Annotated[str | None, typer.Option("--shell", help="The shell [default: bash if it has one, else sh].")] = None,
) -> int:
    """Open a shell in a sandbox."""
    from corral.cli import terminal as own

    argv = [program] if program else ["/bin/sh", "-c", "command -v bash >/dev/null 2>&1 && exec bash -i; exec sh -i"]
    pty = own.both()
    if not pty:
        argv = [program or "/bin/sh"]
    return _run(_Start(sandbox, argv, {}, user, workdir, None, pty=pty, feed=True), detach=False, json=False)


class _Start:
    def __init__(
        self, sandbox: str, argv: list[str], env: dict[str, str], user: str | None, workdir: str | None, timeout: float | None, *, pty: bool, feed: bool
    ) -> None:
        self.sandbox, self.argv, self.env, self.user, self.workdir, self.timeout, self.pty, self.feed = sandbox, argv, env, user, workdir, timeout, pty, feed


def _run(start: _Start, *, detach: bool, json: bool) -> int:
    import asyncio

    return asyncio.run(_work(start, detach=detach, json=json))


async def _work(start: _Start, *, detach: bool, json: bool) -> int:
    from contextlib import nullcontext

    from corral.aio import Client
    from corral.cli import show
    from corral.cli import terminal as own

    async with Client() as client:
        sandbox = await client.sandboxes.get(start.sandbox)
        with own.raw() if start.pty else nullcontext():
            process = await sandbox.exec(
                *start.argv,
                text=False,
                stdin=start.feed,
                env=start.env | (own.environment() if start.pty else {}),
                user=start.user,
                cwd=start.workdir,
                timeout=start.timeout,
                pty=own.size() if start.pty else False,
            )
            if detach:
                show.as_json(process.info) if json else print(process.id)
                return 0
            with own.signals_passed_on(process):
                return await own.join(process, feed=start.feed, follow_size=start.pty)
