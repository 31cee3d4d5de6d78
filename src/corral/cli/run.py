"""`corral run`: one command in a sandbox of its own."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from corral.cli import options, show

if TYPE_CHECKING:
    from corral.aio import Sandbox


def run(
    command: options.Words,
    *,
    image: options.Image = None,
    name: options.Name = None,
    cpu: options.Cpu = 1,
    memory: options.Memory = 512,
    disk: options.Disk = 4096,
    pids: options.Pids = 1024,
    timeout: options.Timeout = 3600,
    env: options.Env = None,
    volume: options.Volume = None,
    tag: options.Tag = None,
    user: options.User = None,
    workdir: options.Workdir = None,
    egress: options.Egress = None,
    wait: options.Wait = 0,
    terminal: Annotated[bool, typer.Option("-t", help="Give it a terminal, which is yours.")] = False,
    interactive: Annotated[bool, typer.Option("-i", help="Pass your input on even when it is a terminal.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Say where the time went.")] = False,
    json: options.Json = False,
) -> int:
    """Create a sandbox, run a command in it, remove it; exits with the command's code.

    Standard input is passed on unless it is a terminal. Ctrl-C kills the command.
    """
    from corral.cli import terminal as own
    from corral.cli.work import until_signal

    if terminal and not own.both():
        raise options.WrongUse("-t needs a terminal on standard input and output")
    if terminal and json:
        raise options.WrongUse("-t and --json don't go together")
    create: dict[str, Any] = {
        "image": image,
        "name": name,
        "cpu": cpu,
        "memory": memory,
        "disk": disk,
        "pids": pids,
        "timeout": options.timeout(timeout),
        "env": options.pairs(env, environment=True),
        "volumes": options.volumes(volume),
        "tags": options.pairs(tag),
        "user": user,
        "workdir": workdir,
        "egress": options.egress(egress),
        "wait": wait,
    }
    return until_signal(lambda: _work(create, command, pty=terminal, feed=terminal or interactive or own.has_input(), verbose=verbose, json=json))


async def _work(create: dict[str, Any], command: list[str], *, pty: bool, feed: bool, verbose: bool, json: bool) -> int:
    from corral.aio import Client

    began = time.perf_counter()
    async with Client() as client:
        sandbox = await client.sandboxes.create(**create)
        created = time.perf_counter()
        try:
            if json:
                return await _as_json(sandbox, command, feed=feed)
            return await _attached(sandbox, command, pty=pty, feed=feed)
        finally:
            ended = time.perf_counter()
            await _remove(sandbox)
            if verbose:
                phases = ", ".join(f"{phase} {seconds * 1000:.1f}" for phase, seconds in sandbox.timing.items())
                removed = time.perf_counter()
                print(
                    f"corral: create {(created - began) * 1000:.1f} ms ({phases}), command {(ended - created) * 1000:.1f} ms, remove {(removed - ended) * 1000:.1f} ms",
                    file=sys.stderr,
                )


async def _attached(sandbox: Sandbox, command: list[str], *, pty: bool, feed: bool) -> int:
    """With our input, through the process' channel; without, in one request with no further connection."""
    from corral.cli import terminal as own

    if not feed:
        return await own.watch(sandbox, command)
    if not pty:
        process = await sandbox.exec(*command, text=False)
        return await own.join(process, feed=True)
    with own.raw():
        process = await sandbox.exec(*command, text=False, pty=own.size(), env=own.environment())
        return await own.join(process, feed=True, follow_size=True)


async def _as_json(sandbox: Sandbox, command: list[str], *, feed: bool) -> int:
    from corral.cli import terminal as own

    given = b"".join([piece async for piece in own.own_input()]) if feed else None
    result = await sandbox.run(command, input=given)
    show.as_json(
        {
            "sandbox": sandbox.id,
            "exit_code": result.exit_code,
            "signal": result.signal,
            "stdout": result.stdout,
            "stderr": result.stderr,
            "duration": result.duration,
            "dropped": result.dropped,
            "timing": sandbox.timing,
        }
    )
    return result.exit_code


async def _remove(sandbox: Sandbox) -> None:
    import asyncio

    from corral.errors import NotFound

    try:
        await asyncio.shield(sandbox.delete())
    except NotFound:
        pass
