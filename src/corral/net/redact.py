"""Values of secrets, taken out of what comes back: wherever a chunk ends, in the forms in which servers echo them, by as many characters, so that lengths stay true."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable
from urllib.parse import quote, quote_plus

MASK = b"*"
LEAST = 4
"""Bytes of a value below which it is not looked for: it would be found everywhere."""
ENCODED = 8
"""Bytes of a value from which on its encoded forms are looked for too."""


def forms(value: str) -> frozenset[bytes]:
    """A value as itself, percent-encoded, within a JSON string, and within base64 at each of the three offsets (without the characters that depend on neighbours)."""
    value = value.strip()  # as it is sent
    raw = value.encode()
    if len(raw) < LEAST:
        return frozenset()
    found = {raw}
    if len(raw) >= ENCODED:
        found |= {quote(value, safe="").encode(), quote(value).encode(), quote_plus(value).encode()}
        found |= {json.dumps(value)[1:-1].encode(), json.dumps(value, ensure_ascii=False)[1:-1].encode()}
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            for offset in range(3):
                coded = encode(bytes(offset) + raw)
                # Dropped: the characters that hold bits of what stands before, and of what may stand behind.
                first = (offset * 8 + 5) // 6
                last = (offset + len(raw)) * 8 // 6
                found.add(coded[first:last])
        found |= {form.replace(b"/", b"\\/") for form in set(found)}
        found |= {re.sub(rb"%[0-9A-F]{2}", lambda coded: coded[0].lower(), form) for form in set(found)}
        found |= {raw.hex().encode(), raw.hex().upper().encode()}
    return frozenset(found)


class Patterns:
    """What is looked for: every form of some values. Made once for each policy."""

    def __init__(self, values: Iterable[str]) -> None:
        self.all = sorted({form for value in values for form in forms(value)}, key=len, reverse=True)
        self.match = re.compile(b"|".join(map(re.escape, self.all))) if self.all else None

    def __repr__(self) -> str:
        return f"<Patterns: {len(self.all)} forms>"

    def mask(self, data: bytes) -> bytes:
        """Something that is complete, such as a header's value, without them."""
        return self.match.sub(lambda found: MASK * len(found.group()), data) if self.match else data


class Redactor:
    """Of one message, or one direction of a connection."""

    def __init__(self, patterns: Callable[[], Patterns]) -> None:
        """`patterns` is asked anew each time, since a secret may get another value while an answer comes."""
        self._patterns = patterns
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """What may go on; what could be the beginning of a value is held until more is there."""
        patterns = self._patterns()
        if patterns.match is None:
            rest, self._held = self._held, b""
            return rest + data
        data, done, out = self._held + data, 0, bytearray()
        hold = _partial(patterns, data, 0)
        for found in patterns.match.finditer(data):
            if found.start() >= hold:
                break
            out += data[done : found.start()] + MASK * (found.end() - found.start())
            done = found.end()
            if done > hold:
                hold = _partial(patterns, data, done)
        out += data[done:hold]
        self._held = data[max(hold, done) :]
        return bytes(out)

    def end(self) -> bytes:
        """What was held, once there is no more."""
        rest, self._held = self._held, b""
        return self._patterns().mask(rest)


def _partial(patterns: Patterns, data: bytes, start: int) -> int:
    """Where the first stretch begins, at or after `start`, that reaches the end and may be the beginning of a longer value."""
    earliest = len(data)
    for pattern in patterns.all:
        at = max(start, len(data) - len(pattern) + 1)
        while (at := data.find(pattern[:1], at)) >= 0 and at < earliest:
            if pattern.startswith(data[at:]):
                earliest = at
                break
            at += 1
    return earliest
