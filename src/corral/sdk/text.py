"""Cutting text out of bytes that arrive in any pieces."""

from __future__ import annotations


def complete(data: bytes | bytearray) -> int:
    """How many bytes from the start end on a character's border: a character that is still arriving (at most 3 bytes of UTF-8) is left for later."""
    for back in range(1, min(3, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0x80:  # a continuation: its first byte is further left
            continue
        needed = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
        return len(data) - back if needed > back and byte < 0xF8 else len(data)
    return len(data)


class Decoder:
    """UTF-8 text from pieces cut anywhere; U+FFFD for what is not UTF-8."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> str:
        data = self._rest + piece
        cut = complete(data)
        self._rest = data[cut:]
        return data[:cut].decode(errors="replace")

    def end(self) -> str:
        """What a character cut off by the end leaves."""
        rest, self._rest = self._rest, b""
        return rest.decode(errors="replace")
