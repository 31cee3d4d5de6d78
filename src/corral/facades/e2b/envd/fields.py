"""Reading the fields of a message: JSON of protobuf leaves out what is zero, and says numbers and enums in more than one way."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any, cast

from corral.facades.e2b.envd.connect import Code, Message, RpcError


def wrong(name: str, what: str) -> RpcError:
    return RpcError(Code.INVALID_ARGUMENT, f"{name} is not {what}")


def text(message: Message, name: str) -> str:
    value = message.get(name) or ""
    if not isinstance(value, str):
        raise wrong(name, "text")
    return value


def maybe_text(message: Message, name: str) -> str | None:
    return text(message, name) or None


def flag(message: Message, name: str) -> bool:
    value = message.get(name) or False
    if not isinstance(value, bool):
        raise wrong(name, "true or false")
    return value


def number(message: Message, name: str) -> int:
    value: Any = message.get(name) or 0
    if isinstance(value, str) and value.isdecimal() and len(value) < 20:
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or not 0 <= value < 1 << 63:
        raise wrong(name, "a whole number")
    return int(value)


def inner(message: Message, name: str) -> Message | None:
    value = message.get(name)
    if value is not None and not isinstance(value, dict):
        raise wrong(name, "an object")
    return cast("Message | None", value)


def texts(message: Message, name: str) -> list[str]:
    value: Any = message.get(name) or []
    if not isinstance(value, list) or not all(isinstance(one, str) for one in cast("list[Any]", value)):
        raise wrong(name, "a list of texts")
    return cast("list[str]", value)


def words(message: Message, name: str) -> Mapping[str, str]:
    value: Any = message.get(name) or {}
    if not isinstance(value, dict) or not all(isinstance(one, str) for one in cast("dict[str, Any]", value).values()):
        raise wrong(name, "an object of texts")
    return cast("dict[str, str]", value)


def raw(message: Message, name: str) -> bytes:
    """Bytes, in any of the alphabets that protobuf's JSON allows."""
    value = text(message, name).replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(value + "=" * (-len(value) % 4), validate=True)
    except binascii.Error:
        raise wrong(name, "base64") from None
