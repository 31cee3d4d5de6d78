"""The Range header: one range of bytes. https://www.rfc-editor.org/rfc/rfc9110#section-14.1.2"""

from __future__ import annotations

import re
from typing import NamedTuple

from starlette.responses import Response

from corral.api import errors
from corral.errors import InvalidArgument

_FORM = re.compile(r"\s*bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*", re.IGNORECASE)


class Range(NamedTuple):
    """From `first` to `last`, both included. No last: to the end. No first: the last `last` bytes."""

    first: int | None
    last: int | None


def parse_range(header: str | None) -> Range | None:
    """None: the whole. A header in another unit, or of several ranges, is left out of account, as the RFC allows. Raises `InvalidArgument` for one that ends before it begins."""
    match = None if header is None else _FORM.fullmatch(header)
    if match is None:
        return None
    first, last = (int(text) if text else None for text in match.groups())
    if first is None and last is None:
        return None
    if first is not None and last is not None and last < first:
        raise InvalidArgument(f"Range: {header} ends before it begins", hint="as in bytes=0-1023", details={"field": "Range"})
    return Range(first, last)


def unsatisfiable(size: int) -> Response:
    """The answer to a range that begins behind the end."""
    error = errors.RangeNotSatisfiable(f"Range: the file has only {size} bytes", hint="ask for a part of it", details={"field": "Range", "size": size})
    return errors.answer(error, {"Content-Range": f"bytes */{size}"})
