"""Commands that only look."""

from __future__ import annotations

from typing import Annotated

import typer

from corral.cli import options, show


def ls(
    *,
    tag: options.TagFilter = None,
    state: Annotated[list[str] | None, typer.Option(help="Only those in this state; may be given again [default: all that have not ended].")] = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Only ids.")] = False,
    json: options.Json = False,
) -> None:
    """List sandboxes, newest first."""
    from corral import Client

    with Client() as client:
        boxes = [box.info for box in client.sandboxes.list(tags=options.pairs(tag), state=state)]
    if json:
        show.as_json(boxes)
    elif quiet:
        for box in boxes:
            print(box.id)
    else:
        rows = [(box.id, box.name, box.image, box.state, box.cpu, box.memory, show.ago(box.created_at), _tags(box.tags)) for box in boxes]
        show.table(("id", "name", "image", "state", "cpu", "memory", "age", "tags"), rows)


def inspect(sandbox: options.Box, *, json: options.Json = False) -> None:
    """Everything about one sandbox, with its use of the machine."""
    from corral import Client
    from corral.errors import InvalidState, SandboxEnded

    with Client() as client:
        box = client.sandboxes.get(sandbox)
        try:
            samples = box.metrics()
        except (InvalidState, SandboxEnded):  # not running: nothing to measure
            samples = []
    if json:
        show.as_json({**show.plain(box.info), "use": show.plain(samples[-1]) if samples else None})
        return
    shown = {name: value for name, value in box.info.model_dump().items() if name not in ("timing", "node")}
    if samples:
        last = samples[-1]
        shown["use"] = (
            f"{last.cpu:.2f} cores, {last.memory:.0f} of {last.memory_limit} MiB memory, {last.disk:.0f} of {last.disk_limit} MiB disk, {last.processes} processes"
        )
    rules = len(box.info.egress.rules)
    shown["egress"] = f"{box.info.egress.default}{f', {rules} rules' if rules else ''}{', learning' if box.info.egress.learn else ''}"
    shown["secrets"] = {use.variable: use.name for use in box.info.secrets}
    shown["timing"] = {phase: f"{seconds * 1000:.1f}ms" for phase, seconds in box.timing.items()}
    show.fields(shown)


def ps(sandbox: options.Box, *, json: options.Json = False) -> None:
    """List the processes started in a sandbox."""
    import shlex

    from corral import Client

    with Client() as client:
        processes = client.sandboxes.get(sandbox).processes()
    if json:
        show.as_json(processes)
        return
    rows = [(one.id, one.pid, "running" if one.running else one.exit_code, show.ago(one.started_at), shlex.join(one.argv)[:100]) for one in processes]
    show.table(("id", "pid", "exit", "age", "command"), rows)


def logs(
    sandbox: options.Box,
    process: Annotated[str | None, typer.Argument(help="A process' id: its output instead.")] = None,
    *,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until it ends.")] = False,
    json: options.Json = False,
) -> int:
    """What the engine and the guest agent said of a sandbox, or the output of one of its processes."""
    import asyncio

    from corral import Client

    if process is not None:
        if json:
            raise options.WrongUse("the output of a process is its own: no --json")
        return asyncio.run(_output(sandbox, process, follow=follow))
    if follow:
        raise options.WrongUse("--follow needs a process; `corral events --follow` tells what happens to a sandbox")
    with Client() as client:
        lines = client.sandboxes.get(sandbox).logs()
    if json:
        show.as_json(lines)
    else:
        for line in lines:
            print(f"{line.at:%Y-%m-%dT%H:%M:%S.%f}Z {line.source}: {line.text}")
    return 0


async def _output(sandbox: str, process: str, *, follow: bool) -> int:
    from corral.aio import Client
    from corral.cli import terminal as own

    async with Client() as client:
        box = await client.sandboxes.get(sandbox)
        found = await box.process(process, text=False)
        if follow or not found.info.running:
            await own.join(found, feed=False)
        else:
            await own.show_kept(found)
    return 0


def events(
    *,
    sandbox: Annotated[str | None, typer.Option(help="Only of this one: its id or name.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only of this kind, such as sandbox.created.")] = None,
    after: Annotated[int, typer.Option(help="Only those with a greater number.")] = 0,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on with those to come.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, one event a line.")] = False,
) -> None:
    """What happened."""
    import json as codec
    import sys

    from corral import Client

    with Client() as client:
        for event in client.events(sandbox=sandbox, kind=kind, after=after, follow=follow):
            if json:
                print(codec.dumps(show.plain(event), ensure_ascii=False))
            else:
                details = " ".join(f"{name}={value}" for name, value in event.data.items())
                print(show.line(f"{event.seq} {event.at:%Y-%m-%dT%H:%M:%S}Z {event.kind} {event.sandbox or ''} {details}".rstrip()))
            sys.stdout.flush()


def _tags(tags: dict[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in tags.items())
