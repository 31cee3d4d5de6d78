"""Identities: a two-letter kind, a dash, 16 lower-case base32 characters (80 random bits). Safe as DNS labels, file names and cgroup names."""

from __future__ import annotations

import re
import secrets
from typing import Literal

Kind = Literal["sb", "pr", "im", "sn", "vo", "se", "no", "ke", "ex", "bu", "wh"]

_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"
_PATTERN = re.compile(r"(sb|pr|im|sn|vo|se|no|ke|ex|bu|wh)-[a-z2-7]{16}")


def new_id(kind: Kind) -> str:
    """A fresh identity, such as `sb-k3j5…`."""
    bits = secrets.randbits(80)
    return f"{kind}-" + "".join(_ALPHABET[(bits >> shift) & 31] for shift in range(0, 80, 5))


def family(id: str, count: int) -> list[str]:
    """Identities of things that are made together, at most 1,024: they differ from this one, which may be any of them, in the last two characters only, which count."""
    return [f"{id[:-2]}{_ALPHABET[number >> 5]}{_ALPHABET[number & 31]}" for number in range(count)]


def is_id(text: str, kind: Kind | None = None) -> bool:
    """Whether `text` has the form of an identity (of that kind)."""
    return _PATTERN.fullmatch(text) is not None and (kind is None or text.startswith(kind + "-"))
