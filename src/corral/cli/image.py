"""`corral image` and `corral template`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from corral.cli import options, show

if TYPE_CHECKING:
    from corral import Image
    from corral.schema.image import BuildLog, ImageInfo

image = typer.Typer(help="What sandboxes are made from.", no_args_is_help=True, rich_markup_mode=None)
template = typer.Typer(help="Names for images, by tags.", no_args_is_help=True, rich_markup_mode=None)

Source = Annotated[str, typer.Argument(metavar="SOURCE", help="A Dockerfile, a directory with one, or a Python file that has an Image named `image`.")]
Ref = Annotated[str, typer.Argument(metavar="IMAGE", help="Its id, or a template's NAME[:TAG].")]
BuildArg = Annotated[list[str] | None, typer.Option("--build-arg", metavar="KEY=VALUE", help="Of a Dockerfile; KEY alone takes yours.")]
Target = Annotated[str | None, typer.Option(metavar="STAGE", help="Of a Dockerfile: where to stop.")]
Context = Annotated[str | None, typer.Option(metavar="DIR", help="Of a Dockerfile: what COPY takes from [default: where it is].")]
Cpu = Annotated[float | None, typer.Option(help="Cores for the steps.")]
Memory = Annotated[int | None, typer.Option(help="MiB for the steps.")]
Disk = Annotated[int | None, typer.Option(help="MiB the steps may write.")]
Template = Annotated[str | None, typer.Option(metavar="NAME[:TAG]", help="What it is to be called.")]
Force = Annotated[bool, typer.Option("--force", help="Do every step anew.")]


@image.command("build")
def image_build(
    source: Source = ".",
    *,
    build_arg: BuildArg = None,
    target: Target = None,
    context: Context = None,
    cpu: Cpu = None,
    memory: Memory = None,
    disk: Disk = None,
    egress: options.Egress = None,
    force: Force = False,
    json: options.Json = False,
) -> None:
    """Build an image, saying what its steps print, and print its id."""
    from corral import Client

    described = _described(source, build_arg, target, context)
    with Client() as client:
        made = described.build(cpu=cpu, memory=memory, disk=disk, egress=options.egress(egress), force=force, on_log=_printer(), client=client)
    _print(made, json=json)


@image.command("pull")
def image_pull(
    ref: Annotated[str, typer.Argument(metavar="REF", help="As docker pull has it: python:3.12-slim, ghcr.io/owner/name@sha256:…")],
    *,
    username: Annotated[str | None, typer.Option(metavar="NAME", help="The registry's account.")] = None,
    secret: Annotated[str | None, typer.Option(metavar="SECRET", help="The secret that holds its password; without --username a token.")] = None,
    platform: Annotated[str | None, typer.Option(metavar="OS/ARCH", help="Of an image for several [default: the node's].")] = None,
    template: Template = None,
    force: Annotated[bool, typer.Option("--force", help="Ask the registry what the name means now, even if it was pulled.")] = False,
    json: options.Json = False,
) -> None:
    """Import an image of a registry, and print its id."""
    from corral import Image

    _import(Image.from_registry(ref, username=username, auth=secret, platform=platform), template, force=force, json=json)


@image.command("import")
def image_import(
    file: Annotated[str, typer.Argument(metavar="FILE", help="What `docker save` or `corral image export` wrote, or another OCI archive.")],
    *,
    rootfs: Annotated[bool, typer.Option("--rootfs", help="It is the tar file of a root file system, plain or compressed.")] = False,
    template: Template = None,
    json: options.Json = False,
) -> None:
    """Import an image from an archive, and print its id."""
    from corral import Image

    _import(Image.from_rootfs(file) if rootfs else Image.from_archive(file), template, force=False, json=json)


def _import(described: Image, template: str | None, *, force: bool, json: bool) -> None:
    from corral import Client

    word, _, tag = (template or "").partition(":")
    with Client() as client:
        _print(described.build(force=force, template=word or None, tag=tag or None, on_log=_printer(), client=client), json=json)


@image.command("export")
def image_export(
    ref: Annotated[str, typer.Argument(metavar="IMAGE", help="An image, snapshot or template, or a sandbox's id: its disk as it is now.")],
    file: Annotated[str, typer.Argument(metavar="FILE", help="Where to write it.")],
) -> None:
    """Write an OCI archive that `docker load`, skopeo and podman take."""
    from corral import Client

    with Client() as client:
        if ref.startswith("sb-"):
            client.sandboxes.get(ref).export(file)
        else:
            client.images.export(ref, file)


@image.command("ls")
def image_ls(*, json: options.Json = False) -> None:
    """List images."""
    from corral import Client

    with Client() as client:
        images = client.images.list()
    if json:
        show.as_json(images)
    else:
        rows = [(one.id, one.name or ", ".join(one.templates), show.size(one.size), show.ago(one.created_at), one.user) for one in images]
        show.table(("id", "name", "size", "age", "user"), rows)


@image.command("inspect")
def image_inspect(ref: Ref) -> None:
    """Print all that is known of an image, as JSON."""
    from corral import Client

    with Client() as client:
        show.as_json(client.images.get(ref))


@image.command("rm")
def image_rm(images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Ids.")]) -> None:
    """Delete images. Refused while a template names one or a sandbox stands on it."""
    from corral import Client

    with Client() as client:
        for id in images:
            client.images.delete(id)


@image.command("df")
def image_df(*, json: options.Json = False) -> None:
    """Tell what images, kept results of steps and uploads take."""
    from corral import Client

    with Client() as client:
        usage = client.images.usage()
    if json:
        show.as_json(usage)
    else:
        rows = [("images", usage.images, usage.images_size), ("layers", usage.layers, usage.layers_size), ("uploads", usage.uploads, usage.uploads_size)]
        show.table(("what", "count", "size"), [(what, count, show.size(size)) for what, count, size in rows])


@image.command("prune")
def image_prune(
    *,
    older_than: Annotated[float | None, typer.Option(metavar="SECONDS", help="Only what no build has used for so long.")] = None,
    keep_size: Annotated[int | None, typer.Option(metavar="MIB", help="Only the longest unused, until so much is left.")] = None,
    images: Annotated[bool, typer.Option("--images", help="Also images that no template names and no sandbox stands on.")] = False,
    json: options.Json = False,
) -> None:
    """Forget results of steps and uploads."""
    from corral import Client

    with Client() as client:
        done = client.images.prune(older_than=older_than, keep_size=None if keep_size is None else keep_size << 20, images=images)
    if json:
        show.as_json(done)
    else:
        print(f"{done.layers} layers, {done.images} images, {done.uploads} uploads: {show.size(done.size)}")


@template.command("build")
def template_build(
    source: Source,
    name: Annotated[str, typer.Argument(metavar="NAME[:TAG]", help="What it is to be called.")],
    *,
    build_arg: BuildArg = None,
    target: Target = None,
    context: Context = None,
    start: Annotated[str | None, typer.Option(metavar="COMMAND", help="What runs in every new sandbox of it.")] = None,
    ready_port: Annotated[int | None, typer.Option(metavar="PORT", help="A sandbox is ready when something listens there.")] = None,
    ready_command: Annotated[str | None, typer.Option(metavar="COMMAND", help="A sandbox is ready when this ends with 0.")] = None,
    warm: Annotated[bool, typer.Option("--warm", help="Sandboxes begin with it running, out of a memory that is kept.")] = False,
    cpu: Cpu = None,
    memory: Memory = None,
    disk: Disk = None,
    egress: options.Egress = None,
    force: Force = False,
    json: options.Json = False,
) -> None:
    """Build an image and give it a name, which `--image` then takes."""
    from corral import Client

    described = _described(source, build_arg, target, context)
    ready = {"port": ready_port, "command": ready_command}
    given = {key: value for key, value in ready.items() if value is not None}
    if (given or warm) and start is None:
        raise options.WrongUse("--ready-port, --ready-command and --warm need --start")
    if start is not None:
        described = described.start(start, ready=given or None, warm=warm)
    word, _, tag = name.partition(":")
    with Client() as client:
        made = described.build(
            cpu=cpu,
            memory=memory,
            disk=disk,
            egress=options.egress(egress),
            force=force,
            template=word,
            tag=tag or None,
            on_log=_printer(),
            client=client,
        )
    _print(made, json=json)


@template.command("set")
def template_set(name: Annotated[str, typer.Argument(metavar="NAME[:TAG]")], ref: Ref, *, json: options.Json = False) -> None:
    """Let a name mean an image that is there."""
    from corral import Client

    word, _, tag = name.partition(":")
    with Client() as client:
        made = client.templates.set(word, ref, tag=tag or "latest")
    if json:
        show.as_json(made)


@template.command("ls")
def template_ls(*, json: options.Json = False) -> None:
    """List templates, those that ship with Corral too."""
    from corral import Client

    with Client() as client:
        found = client.templates.list()
    if json:
        show.as_json(found)
    else:
        rows = [(one.name, ", ".join(one.tags), one.tags.get("latest"), len(one.sandboxes), show.ago(one.created_at)) for one in found]
        show.table(("name", "tags", "image", "sandboxes", "age"), rows)


@template.command("inspect")
def template_inspect(name: str) -> None:
    """Print all that is known of a template, as JSON."""
    from corral import Client

    with Client() as client:
        show.as_json(client.templates.get(name))


@template.command("rm")
def template_rm(names: Annotated[list[str], typer.Argument(metavar="NAME[:TAG]...")]) -> None:
    """Forget templates, or tags of them. Images and sandboxes stay."""
    from corral import Client

    with Client() as client:
        for name in names:
            word, _, tag = name.partition(":")
            client.templates.delete(word, tag=tag or None)


def _described(source: str, args: list[str] | None, target: str | None, context: str | None) -> Image:
    from corral import Image

    path = Path(source)
    if path.suffix == ".py":
        if args or target or context:
            raise options.WrongUse("--build-arg, --target and --context are for Dockerfiles")
        return _of_python(path)
    return Image.from_dockerfile(path / "Dockerfile" if path.is_dir() else path, context, args=options.pairs(args, environment=True), target=target)


def _of_python(path: Path) -> Image:
    """What a Python file calls `image`. It is the caller's own program, and runs as such."""
    import runpy

    from corral import Image

    if not path.is_file():
        raise options.WrongUse(f"there is no {path}")
    found = runpy.run_path(str(path)).get("image")
    if not isinstance(found, Image):
        raise options.WrongUse(f"{path} has no Image named `image`")
    return found


def _printer() -> Callable[[BuildLog], None]:
    """What a build says, on standard error: steps as headings, output as it is."""
    bold, off = ("\033[1m", "\033[0m") if sys.stderr.isatty() else ("", "")

    def say(line: BuildLog) -> None:
        match line.stream:
            case "step" | "cached":
                head = show.line(line.text.split("\n", 1)[0])
                print(f"{bold}[{line.step}] {head}{off}{' (known)' if line.stream == 'cached' else ''}", file=sys.stderr)
            case "note":
                print(show.line(line.text), file=sys.stderr)
            case _:
                print(line.text, end="", file=sys.stderr, flush=True)

    return say


def _print(made: ImageInfo, *, json: bool) -> None:
    if json:
        show.as_json(made)
    else:
        print(made.id)
