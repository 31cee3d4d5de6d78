"""The spool keeps what was written by offset, drops the oldest beyond its bound and says so, and survives the death of its writer."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from corral.node.spool import Spool


def pattern(start: int, size: int) -> bytes:
    return bytes((at * 31 + at // 251) % 256 for at in range(start, start + size))


def read_all(spool: Spool, offset: int = 0, limit: int = 1000) -> tuple[bytes, int]:
    """Everything from `offset` on, and how many bytes of it are gone."""
    data, dropped = b"", 0
    while piece := spool.read(offset, limit):
        assert piece.offset == offset + piece.dropped
        assert piece.data == pattern(piece.offset, len(piece.data))
        data += piece.data
        dropped += piece.dropped
        offset = piece.offset + len(piece.data)
    assert offset == spool.end
    return data, dropped


def test_a_stream_without_output_has_no_file(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "pr", 1, fresh=True)
    assert (spool.start, spool.end, spool.read(0, 10)) == (0, 0, None)
    spool.append(b"")
    spool.close()
    assert not (tmp_path / "pr").exists()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 900), max_size=40), st.integers(100, 4000), st.data())
def test_what_is_kept_is_right_and_the_rest_is_counted(tmp_path_factory: pytest.TempPathFactory, sizes: list[int], bound: int, data: st.DataObject) -> None:
    directory = tmp_path_factory.mktemp("spool") / "pr"
    use = 0

    def changed(size: int) -> None:
        nonlocal use
        use += size

    spool = Spool(directory, 1, bound=bound, fresh=True, on_change=changed)
    for size in sizes:
        spool.append(pattern(spool.end, size))
        assert spool.size <= bound + 900
        assert use == spool.size
        if data.draw(st.booleans()):
            spool.close()
        if data.draw(st.booleans()):
            spool.close()
            use = 0
            spool = Spool(directory, 1, bound=bound, on_change=changed)
    total = sum(sizes)
    assert spool.end == total
    kept, dropped = read_all(spool)
    assert len(kept) + dropped == total
    assert len(kept) >= min(total, bound * 3 // 4 - 900)
    middle = data.draw(st.integers(0, total))
    part, gone = read_all(spool, middle)
    assert part == kept[len(kept) - len(part) :]
    assert len(part) + gone == total - middle
    spool.remove()
    assert use == 0
    assert not list(directory.iterdir()) if directory.exists() else True


def test_a_reader_of_what_is_gone_is_told_how_much(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "pr", 2, bound=1000, fresh=True)
    for _ in range(100):
        spool.append(pattern(spool.end, 100))
    piece = spool.read(0, 10)
    assert piece is not None
    assert piece.dropped == piece.offset == spool.start > 8000
    spool.skip(spool.end + 5)
    assert (spool.start, spool.end) == (10_005, 10_005)
    assert spool.read(9_000, 10) == (10_005, b"", 1_005)
    again = Spool(tmp_path / "pr", 2, bound=1000)
    assert (again.start, again.end) == (10_005, 10_005)
    again.append(pattern(10_005, 3))
    assert read_all(again, 10_000) == (pattern(10_005, 3), 5)


def test_two_streams_share_a_directory(tmp_path: Path) -> None:
    one, two = (Spool(tmp_path / "pr", stream, fresh=True) for stream in (1, 2))
    one.append(b"out")
    two.append(b"error")
    assert (Spool(tmp_path / "pr", 1).end, Spool(tmp_path / "pr", 2).end) == (3, 5)


WRITER = """
import os, sys
from pathlib import Path
from corral.node.spool import Spool
spool = Spool(Path(sys.argv[1]), 1, bound=400_000)
data = bytes((at * 31 + at // 251) % 256 for at in range(251 * 256 * 4))
at = spool.end
while True:
    size = 1 + at % 60_000
    start = at % (251 * 256)
    spool.append(memoryview(data)[start : start + size])
    at += size
    os.write(1, b"%d\\n" % at)
"""


def test_what_was_written_survives_a_killed_writer(tmp_path: Path) -> None:
    for round_ in range(5):
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        with subprocess.Popen([sys.executable, "-c", WRITER, tmp_path / "pr"], stdout=subprocess.PIPE, env=env) as writer:
            assert writer.stdout is not None
            acknowledged = 0
            for _ in range(3 + 40 * round_):
                acknowledged = int(writer.stdout.readline())
            writer.send_signal(signal.SIGKILL)
            for line in writer.stdout:
                if line.endswith(b"\n"):
                    acknowledged = int(line)
        spool = Spool(tmp_path / "pr", 1, bound=400_000)
        assert spool.end >= acknowledged
        kept, dropped = read_all(spool, limit=100_000)
        assert len(kept) + dropped == spool.end
        assert len(kept) >= min(spool.end, 240_000)


def test_a_disk_that_refuses_writes_costs_output_but_is_not_hidden(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "pr", 1, fresh=True)
    spool.append(pattern(0, 1000))
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, before[1]))
    try:
        with capture_logs() as logs:
            spool.append(pattern(1000, 1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert [entry["event"] for entry in logs] == ["spool_write_failed"]
    assert (spool.start, spool.end) == (2000, 2000)
    spool.append(pattern(2000, 1000))
    assert read_all(spool) == (pattern(2000, 1000), 2000)
