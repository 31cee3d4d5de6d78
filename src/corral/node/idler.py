"""When a running sandbox is frozen and woken. Decisions only: the clock, the timer and the box are handed in.

An awake idle sentry of gVisor 20240729 polls for ever (about 4 % of a core). So a box is frozen (SIGSTOP) once nothing has used it for `QUIET`; any use thaws it first. When so many are awake
that their polling takes processor time from each other, one with no process but the agent is frozen sooner. With no process but the agent alive it stays frozen for ever. With others it is woken now and then, because a timer inside the guest can't be seen from outside: each `doze` seconds for `PEEK`, and it stays awake when
it spends that time working. `doze` grows to `LONGEST_DOZE`, so that a sleeping program wakes at most about a second late.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

QUIET = 0.2
"""Seconds without use after which a box is frozen."""
PEEK = 0.02
"""Seconds a dozing box is awake at each tick."""
FIRST_DOZE = 0.1
LONGEST_DOZE = 1.0
HASTY_QUIET = 0.015
"""The least that `QUIET` becomes in a crowd: the answer to a create and the first command are not this far apart on a machine that is not busy."""
AWAKE_EACH = 2
"""Boxes awake for each core from which on the time gets shorter: beyond, it falls as their number grows."""
SLACK = 0.001
"""Seconds a timer may come early: less is not worth another one."""
WORKING = 0.01
"""Cores the guest's own code uses above which a box counts as working. Measured: 0.0002 for an idle or sleeping guest, 0.09 and more for one that copies a file."""


class Freezable(Protocol):
    """What the idler needs of a box."""

    def freeze(self) -> None: ...
    def thaw(self) -> None: ...
    def guest_cpu_seconds(self) -> float: ...


class Timer(Protocol):
    def cancel(self) -> None: ...


class Crowd:
    """The awake boxes of a node, which share `cores`."""

    def __init__(self, cores: int) -> None:
        self._roomy = AWAKE_EACH * cores
        self.awake = 0

    @property
    def quiet(self) -> float:
        """Seconds without use after which a box in which nothing runs is frozen now."""
        return QUIET if self.awake <= self._roomy else max(HASTY_QUIET, QUIET * self._roomy / self.awake)


class Idler:
    """Freezes and wakes one box of a `crowd`. Not thread-safe: lives on the event loop.

    `busy` tells whether a request to the guest is under way, `processes` how many processes but the agent live in it. `on_change` is
    called after `frozen` has changed.
    """

    def __init__(
        self,
        box: Freezable,
        *,
        busy: Callable[[], bool],
        processes: Callable[[], int],
        clock: Callable[[], float],
        call_later: Callable[[float, Callable[[], None]], Timer],
        crowd: Crowd,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._box = box
        self._crowd = crowd
        crowd.awake += 1
        self._busy = busy
        self._processes = processes
        self._clock = clock
        self._call_later = call_later
        self._on_change = on_change
        self._used_at = clock()
        self._cpu: tuple[float, float] | None = None
        """When the guest's processor time was read last since the box was woken, and what it was."""
        self._doze = FIRST_DOZE
        self._timer: Timer | None = None
        self.frozen = False
        self._stopped = False
        self._arm(self._crowd.quiet, self._quiet)

    def touch(self) -> None:
        """The box is being used: by a call, by output, by traffic. Cheap enough for every frame."""
        self._used_at = self._clock()
        if self.frozen:
            self._doze = FIRST_DOZE
            self._thaw()
            self._arm(self._crowd.quiet, self._quiet)

    def stop(self, *, thaw: bool = True) -> None:
        """No more decisions, for good; the box is left awake, unless it is about to be killed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if thaw and self.frozen:
            self._thaw()
        if not self.frozen and not self._stopped:
            self._crowd.awake -= 1
        self._stopped = True

    def _arm(self, seconds: float, then: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._call_later(seconds, then)

    def _thaw(self) -> None:
        self.frozen = False
        self._crowd.awake += 1
        self._box.thaw()
        # Reading it takes longer than all the rest, and is for boxes in which something runs.
        self._cpu = (self._clock(), self._box.guest_cpu_seconds()) if self._processes() > 0 else None
        self._on_change()

    def _freeze(self) -> None:
        self.frozen = True
        self._crowd.awake -= 1
        self._box.freeze()
        self._on_change()
        if self._processes() == 0:
            self._timer = None
        else:
            self._arm(self._doze, self._tick)

    def _working(self) -> bool:
        """Whether the guest's own code has used the processors since the last look; True at the first."""
        last, self._cpu = self._cpu, (self._clock(), self._box.guest_cpu_seconds())
        if last is None:
            return True
        elapsed, used = self._cpu[0] - last[0], self._cpu[1] - last[1]
        return elapsed > 0 and used / elapsed > WORKING

    def _quiet(self) -> None:
        """The box may have been unused for long enough: freeze it unless it is used or working."""
        unused = self._clock() - self._used_at
        quiet = self._crowd.quiet if self._processes() == 0 else QUIET
        if quiet - unused > SLACK:
            self._arm(quiet - unused, self._quiet)
        elif self._busy() or (self._processes() > 0 and self._working()):
            self._arm(QUIET, self._quiet)
        else:
            self._freeze()

    def _tick(self) -> None:
        self._thaw()
        self._arm(PEEK, self._peek)

    def _peek(self) -> None:
        """A dozing box was awake for `PEEK`: did it have something to do?"""
        if self._busy() or self._working() or self._clock() - self._used_at < PEEK:
            self._doze = FIRST_DOZE
            self._arm(QUIET, self._quiet)
        else:
            self._doze = min(LONGEST_DOZE, self._doze * 1.5)
            self._freeze()
