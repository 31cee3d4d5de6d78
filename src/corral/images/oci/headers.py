"""The headers of a tar file, one after the other, none of which is kept."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from tarfile import HeaderError
from typing import Self

from corral.errors import InvalidArgument


class Header(tarfile.TarInfo):
    """A header; one that is none is an error, where tarfile takes it for the end of all."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile)
        except HeaderError as error:
            if type(error).__name__ in ("EOFHeaderError", "EmptyHeaderError"):
                raise
            raise InvalidArgument(f"it is no tar file: {error}") from None


def of(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """All of them. tarfile keeps each that it has read: here a stranger says how many there are."""
    while (info := archive.next()) is not None:
        vars(archive)["members"] = []
        yield info
