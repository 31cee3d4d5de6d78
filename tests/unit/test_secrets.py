"""Secrets on a real store with a real key: what the database holds opens nowhere else."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from sqlalchemy import text

from corral.control import secrets as module
from corral.control.events import EventLog
from corral.control.roles import Actor
from corral.control.secrets import Secrets
from corral.errors import Conflict, NotFound, QuotaExceeded, SetupError
from corral.schema.account import Role
from corral.schema.secret import SecretCreate
from corral.store import Store
from corral.store.keyring import FileKeyRing

ME = Actor("ke-a", "default", Role.MEMBER)
THEY = Actor("ke-b", "other", Role.MEMBER)
VALUE = "s3cr3t value \U0001f512\n"


def wanted(name: str, value: str = VALUE) -> SecretCreate:
    return SecretCreate.model_validate({"name": name, "value": value})


@pytest.fixture
async def secrets(store: Store, tmp_path: Path) -> Secrets:
    events = EventLog(store.events, itertools.count(1.0).__next__)
    await events.open()
    return Secrets(store.secrets, FileKeyRing(tmp_path / "secrets.key"), events, itertools.count(1.0).__next__)


async def test_values_are_the_projects_own(secrets: Secrets) -> None:
    await secrets.create(ME, wanted("A"))
    await secrets.create(THEY, wanted("A", "theirs"))
    assert await secrets.values("default", ["A"]) == {"A": VALUE}
    assert await secrets.values("other", {"A"}) == {"A": "theirs"}
    assert await secrets.values("default", []) == {}
    for names in (["B"], ["A", "B"]):
        with pytest.raises(NotFound, match="no secret B"):
            await secrets.values("default", names)
    with pytest.raises(Conflict):
        await secrets.create(ME, wanted("A", "again"))
    changed = await secrets.change(ME, wanted("A", "new"))
    assert await secrets.values("default", ["A"]) == {"A": "new"}
    assert changed.changed_at > changed.created_at
    await secrets.delete(ME, "A")
    with pytest.raises(NotFound):
        await secrets.change(ME, wanted("A"))
    assert await secrets.values("other", ["A"]) == {"A": "theirs"}


async def test_a_row_that_is_put_in_anothers_place_does_not_open(secrets: Secrets, store: Store) -> None:
    """Who can write the database, but has no key, can't have one project's secret sent to another's server."""
    await secrets.create(ME, wanted("A"))
    await secrets.create(ME, wanted("B", "b"))
    await secrets.create(THEY, wanted("C", "c"))
    await store.database.run(text("UPDATE secrets SET sealed = (SELECT sealed FROM secrets WHERE name = 'A') WHERE name = 'B'"))
    with pytest.raises(SetupError, match="does not open"):
        await secrets.values("default", ["B"])
    await store.database.run(text("UPDATE secrets SET project = 'other' WHERE name = 'A'"))
    with pytest.raises(SetupError, match="does not open"):
        await secrets.values("other", ["A"])
    assert await secrets.values("other", ["C"]) == {"C": "c"}


async def test_the_database_and_the_events_have_no_value_in_them(secrets: Secrets, store: Store, tmp_path: Path) -> None:
    await secrets.create(ME, wanted("A"))
    await secrets.change(ME, wanted("A", VALUE + "2"))
    await secrets.values("default", ["A"])
    await store.checkpoint()
    told = await store.events.since("default", after=0, sandbox=None, kinds=None, limit=10)
    assert [event.kind for event in told] == ["secret.created", "secret.changed"]
    assert all(VALUE.encode()[:12] not in file.read_bytes() for file in tmp_path.iterdir())
    assert VALUE not in repr(wanted("A"))
    assert VALUE not in wanted("A").model_dump_json()


async def test_a_project_has_no_more_than_so_many(secrets: Secrets, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 3)
    for number in range(3):
        await secrets.create(ME, wanted(f"S{number}"))
    with pytest.raises(QuotaExceeded, match="3 secrets"):
        await secrets.create(ME, wanted("S3"))
    await secrets.create(THEY, wanted("S3"))
    await secrets.delete(ME, "S0")
    await secrets.create(ME, wanted("S3"))
    assert [one.name for one in await secrets.all("default")] == ["S1", "S2", "S3"]
