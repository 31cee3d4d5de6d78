"""Images as the API shows them, and how they are described: a source and the steps that are done on it."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from corral.schema.egress import Egress
from corral.schema.model import Answer, Request
from corral.schema.sandbox import Env
from corral.schema.secret import SecretName

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of an uploaded file, in hexadecimal digits")]
Place = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00]+$")]
Words = Annotated[list[Annotated[str, Field(pattern=r"^[^\x00]*$")]], Field(min_length=1, max_length=4096)]
TemplateName = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([a-z0-9_-]*[a-z0-9])?$")]
Tag = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$")]

# What an image starts from


class FromImage(Request):
    """An image, snapshot or template that is there."""

    kind: Literal["image"] = "image"
    ref: str = Field(min_length=1, max_length=512, description="its name or id")


class FromScratch(Request):
    """Nothing at all."""

    kind: Literal["scratch"]


class FromDistribution(Request):
    """A distribution's smallest system with Python, made from its packages."""

    kind: Literal["distribution"]
    name: Literal["debian", "ubuntu"]
    release: str | None = Field(default=None, max_length=32, pattern=r"^[a-z]+$", description="its code name; null: the node's own release")


class FromRegistry(Request):
    """An image of an OCI registry."""

    kind: Literal["registry"]
    ref: str = Field(min_length=1, max_length=512, description="as docker pull has it: python:3.12-slim, ghcr.io/owner/name@sha256:…")
    username: str | None = Field(default=None, max_length=256)
    secret: SecretName | None = Field(default=None, description="a secret of the project: the registry's password or token")
    platform: str | None = Field(default=None, pattern=r"^linux/[a-z0-9]+(/[a-z0-9]+)?$", description="such as linux/arm64; null: the node's")


class FromArchive(Request):
    """An uploaded archive: what `docker save` writes, an OCI image layout, or a bare root file system."""

    kind: Literal["archive"]
    upload: Digest
    rootfs: bool = Field(default=False, description="it is the tar file of a root file system")


class FromDockerfile(Request):
    """What a Dockerfile says."""

    kind: Literal["dockerfile"]
    text: str = Field(max_length=1 << 20)
    context: Digest | None = Field(default=None, description="a tar file of the directory it is built in")
    args: dict[str, str] = Field(default_factory=dict)
    target: str | None = Field(default=None, max_length=256, description="the stage to stop at; null: the last")


Source = Annotated[FromImage | FromScratch | FromDistribution | FromRegistry | FromArchive | FromDockerfile, Field(discriminator="kind")]

# Steps


class BuildSecret(Request):
    """A secret that a command is given. It is in no layer."""

    name: SecretName
    path: Place | None = Field(default=None, description="a file that holds it while the command runs")
    env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,255}$", description="a variable that holds it")
    required: bool = True


class Bind(Request):
    """Files that are there only while a command runs."""

    target: Place
    source: Place = "."
    upload: Digest | None = None
    image: Definition | None = None
    stage: str | None = Field(default=None, exclude=True)


class Run(Request):
    """Run a command and keep what it changes."""

    do: Literal["run"] = "run"
    command: str | Words = Field(description="a text for the shell, or words")
    shell: Words | None = Field(default=None, description="what the text is given to; null: /bin/sh -c")
    env: Env = Field(default_factory=dict, description="for this command only")
    caches: dict[Place, TemplateName] = Field(
        default_factory=dict, max_length=12, description="directories kept from build to build, by path: names of volumes"
    )
    secrets: list[BuildSecret] = Field(default_factory=list[BuildSecret], max_length=16)
    binds: list[Bind] = Field(default_factory=list[Bind], max_length=16)
    timeout: float = Field(default=3600, gt=0, le=86_400)
    force: bool = Field(default=False, description="run it even if its result is known")


class InlineFile(Request):
    """A file that is given with the step."""

    name: Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[^/\x00]+$")]
    text: str = Field(max_length=1 << 20)


class Copy(Request):
    """Put files into the image: of an upload, of another image, or given here."""

    do: Literal["copy"] = "copy"
    sources: list[Place] = Field(default_factory=list[str], max_length=1024, description="paths and patterns; of a directory what is in it is copied")
    target: Place
    upload: Digest | None = None
    image: Definition | None = None
    stage: str | None = Field(default=None, exclude=True)
    files: list[InlineFile] = Field(default_factory=list[InlineFile], max_length=64)
    owner: str | None = Field(default=None, max_length=256, description="user, user:group, or numbers; null: root, or of another image's files who had them")
    mode: int | None = Field(default=None, ge=0, le=0o7777)
    unpack: bool = Field(default=False, description="tar archives among the sources are unpacked")
    exclude: list[str] = Field(default_factory=list[str], max_length=1024)
    parents: bool = Field(default=False, description="keep the directories of the sources' paths")

    @model_validator(mode="after")
    def _one_source(self) -> Copy:
        if not self.sources and not self.files:
            raise ValueError("names neither sources nor files")
        if self.sources and sum(given is not None for given in (self.upload, self.image, self.stage)) != 1:
            raise ValueError("give either upload or image")
        return self


class SetEnv(Request):
    """Variables of every process from here on."""

    do: Literal["env"] = "env"
    env: Env


class SetWorkdir(Request):
    """The directory in which processes start; it is made if it is missing. A relative path is below the one before."""

    do: Literal["workdir"] = "workdir"
    path: Place


class SetUser(Request):
    """Who runs processes."""

    do: Literal["user"] = "user"
    user: str = Field(min_length=1, max_length=256)


class SetCommand(Request):
    """What the image is for. Sandboxes don't start it by themselves; `start` does."""

    do: Literal["command"] = "command"
    entrypoint: list[str] | None = None
    command: list[str] | None = None


class SetLabels(Request):
    """Words about the image."""

    do: Literal["label"] = "label"
    labels: dict[str, str]


class SetExposed(Request):
    """Ports that its program listens on: a note for people, nothing is opened."""

    do: Literal["expose"] = "expose"
    ports: list[Annotated[str, Field(pattern=r"^\d{1,5}(/(tcp|udp))?$")]]


class Ready(Request):
    """When what was started is ready: one of these."""

    port: int | None = Field(default=None, ge=1, le=65_535, description="something listens on it")
    url: str | None = Field(
        None, max_length=2048, pattern=r"^http://", description="a GET of it is answered with a status below 400, asked from inside with curl or wget"
    )
    file: Place | None = Field(default=None, description="it is there")
    process: str | None = Field(default=None, max_length=256, description="a program of this name runs")
    command: str | None = Field(default=None, max_length=65_536, description="it ends with 0")
    seconds: float | None = Field(default=None, ge=0, le=3600, description="so much time has passed")
    timeout: float = Field(default=60, gt=0, le=3600, description="seconds; then the create has failed")

    @model_validator(mode="after")
    def _one_of(self) -> Ready:
        if sum(given is not None for given in (self.port, self.url, self.file, self.process, self.command, self.seconds)) != 1:
            raise ValueError("give one of port, url, file, process, command, seconds")
        return self


class SetStart(Request):
    """What runs in every new sandbox of the image before its create is answered."""

    do: Literal["start"] = "start"
    command: str | Words
    ready: Ready | None = None
    warm: bool = Field(
        default=False,
        description="new sandboxes begin with it running, out of a memory that the first of their shape has made aside; for what needs neither network nor variables of the sandbox when it starts",
    )


class SetNotes(Request):
    """What is only recorded: health check, stop signal, volumes."""

    do: Literal["notes"] = "notes"
    notes: dict[str, Any]


Step = Annotated[
    Run | Copy | SetEnv | SetWorkdir | SetUser | SetCommand | SetLabels | SetExposed | SetStart | SetNotes,
    Field(discriminator="do"),
]


class Definition(Request):
    """An image in words. The same words, on the same source, with the same files, are the same image."""

    source: Source
    steps: list[Step] = Field(default_factory=list[Any], max_length=4096)


Bind.model_rebuild()
Copy.model_rebuild()
Definition.model_rebuild()

# Building


class BuildState(StrEnum):
    """Where a build is."""

    RUNNING = "running"
    READY = "ready"
    FAILED = "failed"


class BuildCreate(Request):
    """POST /v1/images/builds."""

    definition: Definition
    cpu: float | None = Field(default=None, gt=0, le=256, allow_inf_nan=False, description="cores; null: two, or what the node has")
    memory: int = Field(default=2048, ge=64, le=1_048_576, description="MiB that a step may use")
    disk: int = Field(default=8192, ge=64, le=4_194_304, description="MiB that the steps may write")
    egress: Egress | None = Field(default=None, description="what steps may reach; null: the server's default")
    force: bool = Field(default=False, description="do every step anew")
    template: TemplateName | None = Field(default=None, description="a template that the image becomes when it is built")
    tag: Tag = "latest"


class BuildError(Answer):
    """Why a build failed."""

    code: str
    message: str
    hint: str | None = None
    step: int | None = Field(default=None, description="the number of the step, from 1")
    text: str | None = Field(default=None, description="what it was to do")
    before: str | None = Field(default=None, description="the step above it")
    output: str | None = Field(default=None, description="the end of what it printed")
    exit_code: int | None = None


class Build(Answer):
    """A build under way or ended. Kept until the server ends, or a hundred newer ones have ended."""

    id: str
    project: str
    state: BuildState
    image: str | None = Field(default=None, description="the image's id, when it is ready")
    error: BuildError | None = None
    steps: int = Field(default=0, description="that it has, as far as is known")
    cached: int = Field(default=0, description="of which so many were known already")
    created_at: datetime
    ended_at: datetime | None = None


class BuildLog(Answer):
    """`data` of the `log` events of GET /v1/images/builds/{id}/logs; the event's id is `seq`."""

    seq: int
    at: datetime
    step: int = Field(default=0, description="the number of the step, from 1; 0: none")
    stream: Literal["step", "cached", "note", "stdout", "stderr"]
    text: str


class ImageInfo(Answer):
    """An image."""

    id: str
    name: str | None = None
    created_at: datetime
    size: int = Field(description="bytes of its own layer; for a built-in or imported image of all its layers")
    user: str | None
    workdir: str | None
    env: dict[str, str]
    command: list[str] | None
    entrypoint: list[str] | None = None
    labels: dict[str, str] = Field(default_factory=dict[str, str])
    exposed: list[str] = Field(default_factory=list[str])
    notes: dict[str, Any] = Field(default_factory=dict[str, Any])
    start: SetStart | None = None
    built: bool = Field(default=False, description="made by a build or an import of the project; else it ships with Corral")
    parent: str | None = None
    used_at: datetime | None = None
    templates: list[str] = Field(default_factory=list[str], description="name:tag of those that name it")


class ImageInfos(Answer):
    """GET /v1/images."""

    images: list[ImageInfo]


class CacheEntry(Answer):
    """A step whose result is kept."""

    image: str
    text: str
    size: int
    created_at: datetime
    used_at: datetime


class Usage(Answer):
    """GET /v1/images/usage: what images take, in bytes."""

    images: int
    images_size: int
    layers: int = Field(description="results of steps kept for later builds")
    layers_size: int
    uploads: int
    uploads_size: int


class Prune(Request):
    """POST /v1/images/prune: forget results of steps, and uploads."""

    older_than: float | None = Field(default=None, ge=0, description="seconds since a build last used them")
    keep_size: int | None = Field(default=None, ge=0, description="bytes that may stay; the longest unused go first")
    images: bool = Field(default=False, description="also images that no template names and no sandbox or snapshot stands on")


class Pruned(Answer):
    """What was forgotten."""

    layers: int
    images: int
    uploads: int
    size: int = Field(description="bytes they referred to; what is shared is free only with the last of its users")


# Templates


class TemplateSet(Request):
    """PUT /v1/templates/{name}: let a name and tag mean an image."""

    image: str = Field(min_length=1, max_length=512, description="an image's id, or the name of one that ships with Corral")
    tag: Tag = "latest"


class Template(Answer):
    """A name for images, by tags."""

    name: str
    project: str | None = Field(description="null: it ships with Corral")
    tags: dict[str, str] = Field(description="the image's id by tag")
    start: SetStart | None = None
    sandboxes: list[str] = Field(default_factory=list[str], description="living ones of its images")
    created_at: datetime | None = None


class Templates(Answer):
    """GET /v1/templates, by name."""

    templates: list[Template]
