"""How one image is built.

source     an image that is there, or one that is made, pulled or unpacked first
plan       the key of each step, from the steps and the files they take alone
look       the last step whose result is kept: everything before it need not be done
do         the rest, one sandbox for all of it, a layer kept after each step
end        the image: the last layer, or one more with the settings that came after it

Two builds that come to the same step at once do it once: the second waits, and finds the result.
"""

from __future__ import annotations

import asyncio
import posixpath
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import assert_never

from corral.control.buildlog import Progress, Tail, failed
from corral.control.images import ImageRecord, Images
from corral.control.ports import Node
from corral.control.roles import Actor
from corral.control.secrets import Secrets
from corral.control.shelf import Shelf
from corral.control.templates import Templates
from corral.control.workbench import Workbench, explain
from corral.errors import CorralError, InvalidArgument, NotFound
from corral.ids import is_id
from corral.images import tree
from corral.images.bounded import Bounded
from corral.images.config import ImageConfig
from corral.images.dockerfile.stages import Stages
from corral.images.keys import base_key, describe, image_id, step_key
from corral.images.tree import Placed, Tree
from corral.images.uploads import Uploads
from corral.node.turns import Turns
from corral.schema.image import (
    Bind,
    BuildCreate,
    Copy,
    Definition,
    FromArchive,
    FromDistribution,
    FromDockerfile,
    FromImage,
    FromRegistry,
    FromScratch,
    Run,
    SetWorkdir,
    Step,
)

Bench = Callable[[Actor, BuildCreate, str, str], Workbench]
"""Makes a workbench: who builds, what was asked, the build's id, the image to start from."""


Workdir = tuple[str, str]
"""A working directory, and who was the user when it was named: to whom it belongs if it has to be made."""


@dataclass(frozen=True)
class Position:
    """Where a build stands: what the node knows the files by, what they were made by, how processes start."""

    image: str
    key: str
    config: ImageConfig
    text: str
    workdirs: tuple[Workdir, ...] = ()
    """Those that have been named and not made yet."""


@dataclass(frozen=True)
class Planned:
    """A step that makes files. `sources`: what it takes, by the path at which a command is shown it; of a copy by the empty path."""

    step: Run | Copy
    number: int
    key: str
    config: ImageConfig
    workdirs: tuple[Workdir, ...]
    before: str
    sources: Mapping[str, Supply]


@dataclass(frozen=True)
class Supply:
    """Files for a step: of an upload, or of another image."""

    tree: Tree | None = None
    position: Position | None = None


class Builder:
    """Builds for all projects. What one build is about is in `_Building`."""

    def __init__(
        self,
        *,
        images: Images,
        templates: Templates,
        shelf: Shelf,
        node: Node,
        uploads: Uploads,
        secrets: Secrets,
        bench: Bench,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.images = images
        self.templates = templates
        self.shelf = shelf
        self.node = node
        self.uploads = uploads
        self.secrets = secrets
        self.bench = bench
        self.clock = clock
        self.turns = Turns()

    async def build(self, actor: Actor, wanted: BuildCreate, progress: Progress, *, password: str | None = None) -> ImageRecord:
        """The image. `password`: of the registry, where no secret holds it. Raises `BuildFailed`, or what is wrong with the source."""
        building = _Building(self, actor, wanted, progress, password)
        return await building.definition(wanted.definition)


class _Building:
    def __init__(self, builder: Builder, actor: Actor, wanted: BuildCreate, progress: Progress, password: str | None) -> None:
        self._of = builder
        self._password = password
        self._actor = actor
        self._wanted = wanted
        self._progress = progress
        self._count = 0

    async def definition(self, wanted: Definition) -> ImageRecord:
        """The image that a definition means, built unless it is kept."""
        position, stages = await self._source(wanted.source)
        position = await self._steps(position, wanted.steps, stages)
        return await self._end(position)

    # Sources

    async def _source(
        self, source: FromImage | FromScratch | FromDistribution | FromRegistry | FromArchive | FromDockerfile
    ) -> tuple[Position, Mapping[str, Position]]:
        library = self._of.node.library
        say = self._note
        match source:
            case FromImage():
                await self._of.templates.make(self._actor.project, source.ref, say)
                return self._present(source.ref), {}
            case FromScratch():
                return self._present(await library.ensure("scratch", say)), {}
            case FromDistribution():
                return self._present(await library.ensure(f"{source.name}-{source.release}" if source.release else source.name, say)), {}
            case FromRegistry():
                project = self._actor.project
                password = self._password if source.secret is None else (await self._of.secrets.values(project, [source.secret]))[source.secret]
                async with library.pull(project, source, password, say, anew=self._wanted.force) as found:
                    return await self._imported(found.image, found.config, found.digest, f"from {source.ref}"), {}
            case FromArchive():
                async with library.unpack(self._actor.project, source, say) as found:
                    return await self._imported(found.image, found.config, found.digest, "from an archive"), {}
            case FromDockerfile():
                return await self._dockerfile(source)
        assert_never(source)

    def _present(self, ref: str) -> Position:
        project = self._actor.project
        record = self._of.templates.image(project, ref)
        if record is not None:
            return Position(record.node_image, record.key, record.settings, f"from {ref}")
        spec = self._of.node.image(self._of.shelf.image(project, ref))
        return Position(spec.id, base_key("image", spec.id), ImageConfig.of(spec), f"from {ref}")

    async def _imported(self, image: str, config: ImageConfig, digest: str, text: str) -> Position:
        """An image that was imported is the project's from now on."""
        key = base_key("oci", digest)
        record = self._of.images.known(self._actor.project, key)
        if record is None or record.node_image != image:
            size = self._of.node.library.size(image)
            record = await self._of.images.add(self._record(key, image, image, image, text, config, size, kept=False, own=image))
        else:
            record = await self._of.images.use(record)
        return Position(record.node_image, key, config, text)

    async def _dockerfile(self, source: FromDockerfile) -> tuple[Position, Mapping[str, Position]]:
        """Every stage that the last one needs, in their order."""
        stages = Stages(source.text, source.args, target=source.target, context=source.context)
        done: dict[str, Position] = {}
        for stage in stages.needed():
            for name in (stage.base, *stage.images):
                if name not in done:
                    done[name] = (await self._source(self._meant(name)))[0]
            steps = stages.steps(stage, done[stage.base].config)
            done[stage.name] = await self._steps(done[stage.base], steps, done)
        for warning in stages.warnings:
            self._note(warning)
        return done[stages.last.name], done

    def _meant(self, name: str) -> FromImage | FromScratch | FromRegistry:
        """What FROM means: ids, the project's own names, `corral/…` for what ships with Corral; else a registry's."""
        project = self._actor.project
        if name == "scratch":
            return FromScratch(kind="scratch")
        if name.startswith("corral/"):
            return FromImage(ref=name.removeprefix("corral/"))
        if is_id(name) or self._of.templates.image(project, name) is not None or self._of.shelf.find(project, name) is not None:
            return FromImage(ref=name)
        return FromRegistry(kind="registry", ref=name)

    # Steps

    async def _steps(self, position: Position, steps: Sequence[Step], stages: Mapping[str, Position]) -> Position:
        planned, last = await self._plan(position, steps, stages)
        if not planned:
            return last
        images, project = self._of.images, self._actor.project
        forced = next((at for at, one in enumerate(planned) if self._wanted.force or (isinstance(one.step, Run) and one.step.force)), len(planned))
        if forced == len(planned) and (record := images.known(project, last.key)) is not None:
            self._were_known(planned)
            await images.use(record)
            return replace(last, image=record.node_image, workdirs=())
        begin, image = 0, position.image
        for number in range(forced - 1, -1, -1):
            if (record := images.known(project, planned[number].key)) is not None:
                begin, image = number + 1, record.node_image
                await images.use(record)
                break
        self._were_known(planned[:begin])
        if begin == len(planned):
            return replace(last, image=image)
        return await self._do(image, planned[begin:], forced - begin, last)

    def _were_known(self, planned: Sequence[Planned]) -> None:
        for one in planned:
            self._progress.cached += 1
            self._progress.say("cached", describe(one.step), step=one.number)

    async def _plan(self, position: Position, steps: Sequence[Step], stages: Mapping[str, Position]) -> tuple[list[Planned], Position]:
        """The steps that make files, with their keys, and where all of them lead."""
        planned: list[Planned] = []
        key, config, workdirs, before = position.key, position.config, position.workdirs, position.text
        for step in steps:
            match step:
                case Run():
                    sources = {config.absolute(bind.target): await self._supply(bind, stages) for bind in step.binds}
                    self._count += 1
                    key = step_key(
                        key, step, "".join([await asyncio.to_thread(self._digest, bind, sources[config.absolute(bind.target)]) for bind in step.binds])
                    )
                    planned.append(Planned(step, self._count, key, config, workdirs, before, sources))
                case Copy():
                    supply = await self._supply(step, stages)
                    self._count += 1
                    key = step_key(key, step, await asyncio.to_thread(self._digest, step, supply))
                    planned.append(Planned(step, self._count, key, config, workdirs, before, {"": supply}))
                case _:
                    key = step_key(key, step, "")
                    config = config.apply(step)
                    if isinstance(step, SetWorkdir) and config.workdir is not None:
                        workdirs = (*workdirs, (config.workdir, config.user or "root"))
            before = describe(step)
        self._progress.steps = self._count
        return planned, Position(position.image, key, config, before, workdirs)

    async def _supply(self, step: Copy | Bind, stages: Mapping[str, Position]) -> Supply:
        if step.upload is not None:
            return Supply(tree=await self._of.uploads.tree(self._actor.project, step.upload))
        if step.stage is not None:
            if step.stage not in stages:
                raise InvalidArgument(f"{step.stage[:80]!r} is no stage", hint="a definition takes files from an upload or an image")
            return Supply(position=stages[step.stage])
        if step.image is not None:
            record = await self.definition(step.image)
            return Supply(position=Position(record.node_image, record.key, record.settings, record.text))
        return Supply()

    def _digest(self, step: Copy | Bind, supply: Supply) -> str:
        """Of the files a step takes."""
        if supply.position is not None:
            return supply.position.key
        if supply.tree is None:
            return ""
        match step:
            case Copy():
                placed = supply.tree.place(step.sources, name=None, exclude=step.exclude, parents=step.parents)
            case Bind():
                placed = supply.tree.place([step.source], name=None)
        return tree.digest(placed, owners=False)

    async def _do(self, image: str, planned: Sequence[Planned], forced: int, last: Position) -> Position:
        """The steps whose results are not known. `forced`: from which of them on they are done anyway."""
        bench = self._of.bench(self._actor, self._wanted, self._progress.id, image)
        made: set[Workdir] = set()
        try:
            for at, one in enumerate(planned):
                async with self._of.turns.alone(f"{self._actor.project}:{one.key}"):
                    known = self._of.images.known(self._actor.project, one.key) if at < forced else None
                    if known is not None:
                        self._were_known([one])
                        await bench.restart_from(known.node_image)
                        image = known.node_image
                    else:
                        image = await self._one(bench, one, made)
                made |= set(one.workdirs)
            if last.key == planned[-1].key:
                return replace(last, image=image, workdirs=())
            # The sandbox is there still: what only changes settings costs no other one.
            return replace(last, image=await self._settle(bench, last), workdirs=())
        finally:
            await bench.close()

    async def _settle(self, bench: Workbench, last: Position) -> str:
        """A layer with the settings at the end."""
        await bench.mkdirs(last.workdirs)
        stored = await bench.keep(last.config)
        id = image_id(self._actor.project, last.key)
        await self._of.images.add(self._record(last.key, id, stored.id, stored.parent, last.text, last.config, stored.size, kept=False))
        return stored.id

    async def _one(self, bench: Workbench, one: Planned, made: set[Workdir]) -> str:
        self._progress.say("step", describe(one.step), step=one.number)
        tail = Tail(self._progress, one.number)
        try:
            missing = [workdir for workdir in one.workdirs if workdir not in made]
            match one.step:
                case Run():
                    await self._run(bench, one, one.step, tail, missing)
                case Copy():
                    await bench.mkdirs(missing)
                    await self._copy(bench, one, one.step)
            stored = await bench.keep(one.config)
        except CorralError as error:
            raise explain(error, step=one.number, text=describe(one.step), before=one.before, output=tail.text) from error
        record = self._record(
            one.key, image_id(self._actor.project, one.key), stored.id, stored.parent, describe(one.step), one.config, stored.size, kept=False
        )
        await self._of.images.add(record)
        return stored.id

    async def _run(self, bench: Workbench, one: Planned, step: Run, tail: Tail, workdirs: Sequence[Workdir]) -> None:
        with bench.scratch() as room:
            binds: dict[str, tuple[Path, bool]] = {}
            for number, bind in enumerate(step.binds):
                target = one.config.absolute(bind.target)
                found, root = await self._files(one.sources[target], [bind.source], Path(room) / f"source-{number}")
                directory = found.is_directory([root])
                placed = found.place([root], name=None if directory else posixpath.basename(target))
                tar = Path(room) / f"bind-{number}"
                await asyncio.to_thread(_write, placed, tar, bench.most, owners=False)
                binds[target] = (tar, directory)
            code = await bench.run(step, one.config, tail, binds, workdirs)
        if code:
            what = step.command if isinstance(step.command, str) else " ".join(step.command)
            raise failed(
                f"the command ended with {code}: {what[:200]}", step=one.number, text=describe(step), before=one.before, output=tail.text, exit_code=code
            )

    async def _copy(self, bench: Workbench, one: Planned, step: Copy) -> None:
        supply = one.sources[""]
        target = one.config.absolute(step.target)
        with bench.scratch() as room:
            tar = Path(room) / "copy"
            if step.files:
                single = len(step.files) == 1 and not step.sources and not step.target.endswith("/") and not await bench.is_directory(target)
                given = [(posixpath.basename(target) if single else one_file.name, one_file.text) for one_file in step.files]
                with tar.open("wb") as out:
                    tree.inline(given, out, mode=step.mode)
                await bench.put(tar, posixpath.dirname(target) if single else target, owner=step.owner or "root")
            if not step.sources:
                return
            found, *sources = await self._files_of(supply, step.sources, Path(room) / "source")
            kept = supply.position is not None and step.owner is None
            plain = not step.target.endswith(("/", "/.")) and step.target not in (".", "..") and not step.parents
            name = posixpath.basename(target) if plain and not found.is_directory(sources) and not await bench.is_directory(target) else None
            if name is None and plain and len(sources) > 1:
                raise InvalidArgument(f"several sources are copied to {step.target!r}, which is no directory", hint="end it with a slash")
            placed = await asyncio.to_thread(found.place, sources, name=name, exclude=step.exclude, parents=step.parents)
            if name is not None and step.unpack and _is_archive(placed):
                # Its content goes to a directory of that name, and not beside it.
                name = None
            await asyncio.to_thread(_write, placed, tar, bench.most, owners=kept, mode=step.mode, unpack=step.unpack)
            # What is in an archive belongs to whom the archive says; all else of an upload is written as root's.
            owner = step.owner or ("" if kept or step.unpack else "root")
            await bench.put(tar, target if name is None else posixpath.dirname(target), owner=owner)

    async def _files(self, supply: Supply, sources: Sequence[str], room: Path) -> tuple[Tree, str]:
        found, *rest = await self._files_of(supply, sources, room)
        return found, rest[0]

    async def _files_of(self, supply: Supply, sources: Sequence[str], room: Path) -> tuple[Tree, *tuple[str, ...]]:
        """The files a step takes, and the sources as they are named there. Those of another image are fetched out of a sandbox of it."""
        if supply.tree is not None:
            return supply.tree, *sources
        assert supply.position is not None
        bench = self._of.bench(self._actor, self._wanted.model_copy(update={"egress": "none"}), self._progress.id, supply.position.image)
        found = Tree({})
        try:
            for number, source in enumerate(sources):
                whole = posixpath.normpath("/" + source)
                found = found.joined(await bench.fetch(whole, room.with_name(f"{room.name}-{number}")), "")
        except NotFound as error:
            raise NotFound(f"{error.message}: not in the image it is to be copied from", hint="is it misspelt, or made by a later step?") from None
        finally:
            await bench.close()
        return found, *sources

    # The end

    async def _end(self, position: Position) -> ImageRecord:
        """The image of where the steps led: what is kept for its key, or one more layer with its settings."""
        project = self._actor.project
        if (record := self._of.images.known(project, position.key)) is not None and not position.workdirs:
            return await self._of.images.use(record, kept=True)
        async with self._of.turns.alone(f"{project}:{position.key}"):
            if (record := self._of.images.known(project, position.key)) is None:
                spec = self._of.node.image(position.image)
                if position.config.spec(spec) == spec and not position.workdirs:
                    id = image_id(project, position.key)
                    record = self._record(position.key, id, position.image, spec.id, position.text, position.config, 0, kept=True)
                    return await self._of.images.add(record)
                bench = self._of.bench(self._actor, self._wanted.model_copy(update={"egress": "none"}), self._progress.id, position.image)
                try:
                    await self._settle(bench, position)
                finally:
                    await bench.close()
                record = self._of.images.known(project, position.key)
                assert record is not None
            return await self._of.images.use(record, kept=True)

    def _record(
        self, key: str, id: str, node_image: str, parent: str, text: str, config: ImageConfig, size: int, *, kept: bool, own: str | None = None
    ) -> ImageRecord:
        now = self._of.clock()
        return ImageRecord(
            id=own or id,
            project=self._actor.project,
            key=key,
            node_image=node_image,
            parent=parent,
            text=text,
            config=config.encode(),
            size=size,
            kept=kept,
            created_at=now,
            created_by=self._actor.key,
            used_at=now,
        )

    def _note(self, text: str) -> None:
        self._progress.say("note", text)


def _write(placed: Sequence[Placed], path: Path, most: int, *, owners: bool, mode: int | None = None, unpack: bool = False) -> None:
    with Bounded(path, most) as out:
        tree.write(placed, out, owners=owners, mode=mode, unpack=unpack)


def _is_archive(placed: Sequence[Placed]) -> bool:
    return len(placed) == 1 and tree.is_archive(placed[0].entry)
