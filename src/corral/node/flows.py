"""The flow log of one sandbox: a file of JSON lines in its spool, bounded, the oldest half dropped when it is full. Outlives the sandbox' processes, as their output does."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from corral.schema.egress import Flow, Flows, Verdict

NAME = "flows.jsonl"
SIZE = 8 << 20
"""Bytes of the file at most."""
_DENIED = f'"verdict":"{Verdict.DENIED}"'.encode()


class FlowBook:
    """Opened where the sandbox's spool is; the numbers of its lines rise, and begin at 1."""

    def __init__(self, spool: Path) -> None:
        self._path = spool / NAME
        lines = self._lines()
        self._seq = _number(lines[-1]) if lines else 0
        self._size = sum(len(line) + 1 for line in lines)
        # What follows a line that was cut off by a crash must not become part of it.
        self._torn = bool(lines)

    def append(self, flows: Sequence[Flow]) -> list[Flow]:
        """Numbered, in the order given."""
        numbered = [flow.model_copy(update={"seq": self._seq + offset}) for offset, flow in enumerate(flows, 1)]
        data = (b"\n" if self._torn else b"") + b"".join(_line(flow) for flow in numbered)
        self._torn = False
        if self._size + len(data) > SIZE:
            self._shorten()
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._path.open("ab") as file:
            file.write(data)
        self._seq += len(numbered)
        self._size += len(data)
        return numbered

    def page(self, *, after: int, limit: int, denied: bool) -> Flows:
        """The next `limit` lines after number `after`. A line that was cut off by a crash is passed over."""
        found: list[Flow] = []
        more = False
        for line in self._lines():
            if _number(line) <= after or (denied and _DENIED not in line):
                continue
            if len(found) == limit:
                more = True
                break
            found.append(Flow.model_validate_json(line))
        return Flows(flows=found, next=found[-1].seq if more else None)

    def all(self) -> Iterator[Flow]:
        for line in self._lines():
            yield Flow.model_validate_json(line)

    def _shorten(self) -> None:
        lines = self._lines()
        kept = b"".join(line + b"\n" for line in lines[len(lines) // 2 :])
        fresh = self._path.with_suffix(".new")
        fresh.write_bytes(kept)
        fresh.rename(self._path)
        self._size = len(kept)

    def _lines(self) -> list[bytes]:
        try:
            whole = self._path.read_bytes()
        except FileNotFoundError:
            return []
        return [line for line in whole.split(b"\n") if line.startswith(b'{"seq":') and line.endswith(b"}")]


def _line(flow: Flow) -> bytes:
    fields = flow.model_dump(mode="json", exclude_defaults=True, exclude={"seq", "sandbox"})
    return json.dumps({"seq": flow.seq, "sandbox": flow.sandbox, **fields}, separators=(",", ":")).encode() + b"\n"


def _number(line: bytes) -> int:
    return int(line[7 : line.index(b",")])
