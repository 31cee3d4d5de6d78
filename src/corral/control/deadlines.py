"""When a sandbox's time is up, and one heap of the moments at which something is to be looked at. All times are seconds of one clock that the caller reads."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

from corral.schema.sandbox import Reason


def deadline(now: float, timeout: float | None) -> float | None:
    """Of a sandbox that starts, or whose timeout is set, now."""
    return None if timeout is None else now + timeout


def extended(now: float, current: float | None, seconds: float) -> float | None:
    """A deadline moved to at least `seconds` from now; none stays none."""
    return None if current is None else max(current, now + seconds)


@dataclass(frozen=True)
class Due:
    """What a look at a sandbox says: its time is up (`reason`), or when to look again (`at`), or neither."""

    reason: Reason | None = None
    at: float | None = None


def look(now: float, *, deadline: float | None, idle_timeout: float | None, idle_since: float) -> Due:
    """Whether a sandbox's time is up. `idle_since` is when it was last active."""
    if deadline is not None and now >= deadline:
        return Due(reason=Reason.TIMEOUT)
    idle_until = None if idle_timeout is None else idle_since + idle_timeout
    if idle_until is not None and now >= idle_until:
        return Due(reason=Reason.IDLE)
    return Due(at=min((at for at in (deadline, idle_until) if at is not None), default=None))


@dataclass
class Heap:
    """The moment of each id, the earliest first. Setting one anew is cheap: the old entry is dropped when it comes up."""

    _at: dict[str, float] = field(default_factory=dict[str, float])
    _heap: list[tuple[float, str]] = field(default_factory=list[tuple[float, str]])

    def set(self, id: str, at: float | None) -> None:
        """Replace the moment of `id`; None forgets it."""
        if at is None:
            self._at.pop(id, None)
        elif self._at.get(id) != at:
            self._at[id] = at
            heapq.heappush(self._heap, (at, id))
        if len(self._heap) > 64 + 2 * len(self._at):
            self._heap = [(at, id) for id, at in self._at.items()]
            heapq.heapify(self._heap)

    def next(self) -> float | None:
        """The earliest moment."""
        while self._heap and self._at.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def due(self, now: float) -> list[str]:
        """Take out those whose moment has come, the earliest first."""
        ids: list[str] = []
        while (at := self.next()) is not None and at <= now:
            _, id = heapq.heappop(self._heap)
            del self._at[id]
            ids.append(id)
        return ids
