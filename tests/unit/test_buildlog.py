"""What a build says is kept within bounds, and what is not kept is said."""

from __future__ import annotations

import sys
from collections.abc import Callable

from corral.control.buildlog import KEPT, Progress


def progress() -> Progress:
    return Progress("bu-x", "p", lambda: 0.0)


async def test_a_log_takes_so_much_memory_however_long_its_lines_are() -> None:
    ways: tuple[Callable[[int], str], ...] = (lambda number: f"{number}\n", lambda number: f"{number}" + "ä" * 100_000)
    for way, count in zip(ways, (50_000, 500), strict=True):
        build = progress()
        for number in range(count):
            build.say("stdout", way(number))
        lines = build.lines()
        assert 0 < sum(sys.getsizeof(line.text) for line in lines) <= KEPT
        assert lines[-1].text == way(count - 1)
        build.succeed("im-x")
        told = [line async for line in build.follow(0)]
        assert told[1:] == lines
        assert (told[0].stream, told[0].seq) == ("note", lines[0].seq - 1)
        assert f"({count - len(lines)} pieces" in told[0].text
        # Who comes back from there is told nothing twice.
        assert [line async for line in build.follow(lines[0].seq)] == lines[1:]


async def test_all_of_a_short_log_is_told() -> None:
    build = progress()
    build.say("step", "run a", step=1)
    build.say("stdout", "a\n", step=1)
    build.succeed("im-x")
    assert [line.text async for line in build.follow(0)] == ["run a", "a\n"]
    build.shorten(0)
    assert [(line.stream, line.seq) async for line in build.follow(0)] == [("note", 2)]
