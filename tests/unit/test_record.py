"""What one server writes of a sandbox, the next reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from corral.node import record
from corral.node.interface import BoxSpec, ImageSpec
from corral.node.record import Record
from corral.node.sentry import Identity
from corral.schema.egress import EgressPolicy
from corral.schema.sandbox import Reason

IMAGE = ImageSpec("im-x", "base", (Path("/layers/a"), Path("/layers/b")), env={"PATH": "/bin"}, user="user", workdir="/home/user", command=("/bin/sh", "-i"))
SPEC = BoxSpec("sb-aaaaaaaaaaaaaaaa", IMAGE, 1.5, 512, 4096, 100, {"A": "1"}, None, None, "box", sudo=False)
RECORD = Record("m-1", Identity(10, 1000, 11, 1001), SPEC, 1700000000.5)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    record.write(tmp_path, RECORD)
    assert list(record.read_all(tmp_path)) == [RECORD]
    record.remove(tmp_path, SPEC.id)
    record.remove(tmp_path, SPEC.id)
    assert list(record.read_all(tmp_path)) == []


def test_why_one_ended_is_known_until_it_runs_again(tmp_path: Path) -> None:
    record.write(tmp_path, RECORD)
    record.end(tmp_path, SPEC.id, Reason.OOM, "too much")
    record.remove(tmp_path, SPEC.id)
    assert record.ended(tmp_path) == [SPEC.id]
    assert record.why_ended(tmp_path, SPEC.id) == (Reason.OOM, "too much")
    record.keep_on(tmp_path, SPEC.id)
    assert record.why_ended(tmp_path, SPEC.id) is None
    assert list(tmp_path.iterdir()) == []


def test_values_of_secrets_are_not_written(tmp_path: Path) -> None:
    policy = EgressPolicy.model_validate({"default": "public", "rules": [{"to": ["*.test"], "action": "ask"}]})
    told = replace(RECORD, spec=replace(SPEC, egress=policy, exposed={"TOKEN": "s3cr3t"}))
    record.write(tmp_path, told)
    assert "s3cr3t" not in "".join(file.read_text() for file in tmp_path.iterdir())
    assert "s3cr3t" not in repr(told)
    assert list(record.read_all(tmp_path)) == [replace(told, spec=replace(told.spec, exposed={}))]


def test_a_record_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sb-x.json").write_text('{"version": 2}')
    with pytest.raises(ValueError, match="version 2"):
        list(record.read_all(tmp_path))
