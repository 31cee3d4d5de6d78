"""Volumes: storage that sandboxes share and that outlives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Self

from corral.errors import InvalidArgument
from corral.schema.volume import Volume as VolumeInfo
from corral.schema.volume import VolumeCreate, VolumeMount
from corral.schema.volume import Volumes as VolumeInfos
from corral.sdk import faults
from corral.sdk._async.volume_files import VolumeFiles

if TYPE_CHECKING:
    from corral.sdk._async.client import Client


class Volume:
    """A volume, or the name of one. In `Sandbox.create(volumes={"/data": Volume.named("data")})` it says what appears where."""

    def __init__(self, ref: str, *, info: VolumeInfo | None = None, read_only: bool = False, sub_path: str = "", client: Client | None = None) -> None:
        self.ref = ref
        self.read_only = read_only
        self.sub_path = sub_path
        self._info = info
        self._client = client

    @classmethod
    def named(cls, name: str, *, read_only: bool = False, sub_path: str = "") -> Self:
        """The volume of that name or id, without asking the server. `read_only`: the sandbox can't write it. `sub_path`: it sees only this directory of it."""
        return cls(name, read_only=read_only, sub_path=sub_path)

    @classmethod
    async def create(cls, name: str, *, size: int | None = None, source: str | Self | None = None, client: Client | None = None) -> Self:
        """An empty volume of at most `size` MiB (1024 unless said), or a copy of `source` as that is now. Raises `Conflict` when the project has one of that name, `QuotaExceeded`."""
        client = client or await _default()
        wanted = {"size": size, "source": source.ref if isinstance(source, Volume) else source}
        request = faults.encode(faults.build(VolumeCreate, name=name, **{field: value for field, value in wanted.items() if value is not None}))
        return cls._of(client, faults.decode(VolumeInfo, await client.transport.call("POST", "/v1/volumes", body=request, key=faults.new_key())))

    @classmethod
    async def get(cls, name_or_id: str, *, client: Client | None = None) -> Self:
        """The volume of that name or id; `NotFound` when there is none."""
        client = client or await _default()
        return cls._of(client, faults.decode(VolumeInfo, await client.transport.call("GET", "/v1/volumes/" + faults.segment(name_or_id))))

    @classmethod
    async def list(cls, *, client: Client | None = None) -> list[Self]:
        """The project's, by name."""
        client = client or await _default()
        return [cls._of(client, info) for info in faults.decode(VolumeInfos, await client.transport.call("GET", "/v1/volumes")).volumes]

    @classmethod
    def _of(cls, client: Client, info: VolumeInfo) -> Self:
        return cls(info.id, info=info, client=client)

    def __repr__(self) -> str:
        return f"<Volume {self.ref}{' read-only' if self.read_only else ''}>"

    @property
    def info(self) -> VolumeInfo:
        """What the server said last. Of one that is only named there is nothing; `get` asks."""
        if self._info is None:
            raise InvalidArgument(f"{self.ref!r} is only a name", hint="Volume.get(name) asks the server")
        return self._info

    @property
    def id(self) -> str:
        return self.info.id

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def files(self) -> VolumeFiles:
        """What is in it, without a sandbox. Of one that the server was asked for: `Volume.get(name).files`."""
        place = "/v1/volumes/" + self.info.id
        if self._client is None:
            raise InvalidArgument(f"{self.ref!r} is only a name", hint="Volume.get(name) asks the server")
        return VolumeFiles(self._client.transport, place)

    async def clone(self, name: str) -> Self:
        """A new volume with what is in this one now. Writers of this one wait some milliseconds."""
        return await self.create(name, source=self, client=self._client)

    async def delete(self) -> None:
        """Delete it with everything in it. Raises `Conflict` while a living sandbox has it."""
        client = self._client or await _default()
        await client.transport.call("DELETE", "/v1/volumes/" + faults.segment(self.ref))


def mount(volume: Volume | str) -> VolumeMount:
    """As an attach says it."""
    one = Volume.named(volume) if isinstance(volume, str) else volume
    return faults.build(VolumeMount, volume=one.ref, read_only=one.read_only, sub_path=one.sub_path)


def mounts(volumes: Mapping[str, Volume | str]) -> dict[str, VolumeMount]:
    """As a create says it."""
    return {path: mount(one) for path, one in volumes.items()}


async def _default() -> Client:
    from corral.sdk._async.client import default_client

    return await default_client()
