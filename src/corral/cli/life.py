"""Commands that make, change and end sandboxes."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from corral.cli import options, show


def create(
    *,
    image: options.Image = None,
    name: options.Name = None,
    cpu: options.Cpu = 1,
    memory: options.Memory = 512,
    disk: options.Disk = 4096,
    pids: options.Pids = 1024,
    timeout: options.Timeout = 3600,
    idle_timeout: options.IdleTimeout = None,
    on_timeout: options.OnTimeout = "terminate",
    checkpoint_every: options.CheckpointEvery = None,
    volume: options.Volume = None,
    port: options.Port = None,
    public_port: options.PublicPort = None,
    on_request: options.OnRequest = "resume",
    env: options.Env = None,
    tag: options.Tag = None,
    user: options.User = None,
    workdir: options.Workdir = None,
    egress: options.Egress = None,
    freeze: options.Freeze = True,
    reserve: options.Reserve = False,
    wait: options.Wait = 0,
    json: options.Json = False,
) -> None:
    """Create a sandbox and print its id."""
    from corral import Client

    wanted: dict[str, Any] = {
        "idle_timeout": idle_timeout,
        "on_timeout": on_timeout,
        "checkpoint_every": checkpoint_every,
        "volumes": options.volumes(volume),
        "ports": port or None,
        "public_ports": options.public_ports(public_port),
        "on_request": on_request,
        "env": options.pairs(env, environment=True),
        "tags": options.pairs(tag),
    }
    wanted |= {"name": name, "cpu": cpu, "memory": memory, "disk": disk, "pids": pids, "timeout": options.timeout(timeout)}
    wanted |= {"user": user, "workdir": workdir, "egress": options.egress(egress), "freeze": freeze, "reserve": reserve, "wait": wait}
    with Client() as client:
        sandbox = client.sandboxes.create(image, **wanted)
        if json:
            show.as_json(sandbox.info)
        else:
            print(sandbox.id)


def remove(
    sandboxes: options.Boxes = None,
    *,
    tag: options.TagFilter = None,
    everything: Annotated[bool, typer.Option("--all", help="All of the project.")] = False,
    json: options.Json = False,
) -> None:
    """End sandboxes and remove their disks."""
    from corral import Client

    if sum((bool(sandboxes), bool(tag), everything)) != 1:
        raise options.WrongUse("name sandboxes, or give --tag, or --all")
    with Client() as client:
        if sandboxes:
            ended = client.sandboxes.delete(sandboxes)
        elif tag:
            ended = client.sandboxes.delete(tags=options.pairs(tag))
        else:
            ended = client.sandboxes.delete(found) if (found := [box.id for box in client.sandboxes.list()]) else []
    if json:
        show.as_json(ended)
    else:
        print("\n".join(ended), end="\n" if ended else "")


def stop(sandboxes: options.Boxes = None, *, json: options.Json = False) -> None:
    """End the processes of sandboxes and keep their disks."""
    _each(sandboxes, "stop", json=json)


def start(sandboxes: options.Boxes = None, *, json: options.Json = False) -> None:
    """Start stopped sandboxes again, with their disks."""
    _each(sandboxes, "start", json=json)


def pause(sandboxes: options.Boxes = None, *, json: options.Json = False) -> None:
    """Keep sandboxes with their processes on the disk, until they are resumed or used."""
    _each(sandboxes, "pause", json=json)


def resume(sandboxes: options.Boxes = None, *, json: options.Json = False) -> None:
    """Have paused sandboxes go on where they were."""
    _each(sandboxes, "resume", json=json)


def fork(
    sandbox: options.Box,
    *,
    count: Annotated[int, typer.Option("--count", "-n", help="How many.")] = 1,
    name: Annotated[list[str] | None, typer.Option(help="Of a fork; may be given again, once for each.")] = None,
    json: options.Json = False,
) -> None:
    """Make new sandboxes with the disk, memory and processes of one that goes on, and print their ids."""
    from corral import Client

    if name and count not in (1, len(name)):
        raise options.WrongUse("give --count, or --name once for each")
    with Client() as client:
        made = client.sandboxes.get(sandbox).fork([{"name": one} for one in name] if name else count)
        if json:
            show.as_json([box.info for box in made])
        else:
            for box in made:
                print(box.id)


def extend(sandbox: options.Box, seconds: Annotated[float, typer.Argument(help="From now.")], *, json: options.Json = False) -> None:
    """Move a sandbox's deadline."""
    from corral import Client

    with Client() as client:
        box = client.sandboxes.get(sandbox)
        box.extend(seconds)
        if json:
            show.as_json(box.info)
        else:
            print(box.info.deadline)


def _each(names: list[str] | None, action: str, *, json: bool) -> None:
    from corral import Client

    if not names:
        raise options.WrongUse("name at least one sandbox")
    with Client() as client:
        boxes = [client.sandboxes.get(name) for name in names]
        for box in boxes:
            getattr(box, action)()
            if not json:
                print(box.id)
        if json:
            show.as_json([box.info for box in boxes])
