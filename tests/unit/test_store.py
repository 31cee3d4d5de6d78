"""The store on a real SQLite file: what is written comes back, in order, also when something fails in between and after the server is gone."""

from __future__ import annotations

import asyncio
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, create_engine, insert, text
from sqlalchemy.exc import IntegrityError

from corral.control.idempotency import Answer, Claim, Kept
from corral.control.lifecycle import LIVING
from corral.control.record import Exposure, Record, moment
from corral.errors import SetupError
from corral.ids import new_id
from corral.schema.egress import EgressPolicy, Rule
from corral.schema.observe import Event
from corral.schema.sandbox import Reason, State
from corral.schema.secret import Secret, SecretUse
from corral.store import Store, tables
from corral.store.migrate import HEAD, MIGRATIONS
from harness.records import record


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "corral.db"


def event(seq: int, **fields: object) -> Event:
    return Event.model_validate({"seq": seq, "at": moment(seq), "kind": "x", "project": "default", **fields})


def fresh(**fields: object) -> Record:
    return record(**{"id": new_id("sb"), **fields})  # pyright: ignore[reportArgumentType]


async def test_a_record_comes_back_as_it_was(store: Store) -> None:
    full = fresh(
        name="a",
        env={"K": "v=\n"},
        tags={"run": "7"},
        user="u",
        workdir="/w",
        timeout=1.5,
        idle_timeout=2.5,
        deadline=3.25,
        timing={"total": 0.01},
        egress=EgressPolicy.model_validate({"default": "public", "rules": [{"to": ["a.test"], "inject": {"A": "{{B}}"}}], "budget": {"bytes": 7}}),
        secrets=(SecretUse(name="S"), SecretUse(name="T", env="U")),
        previews=Exposure(public=(8000,), hosts={8000: "a.test"}, generation=2, only=(80, 8000)),
        reason=Reason.OOM,
        detail="…",
    )
    for one in (full, fresh()):
        await store.sandboxes.create(one, [], None)
        assert await store.sandboxes.get("default", one.id) == one
    assert await store.sandboxes.get("another", full.id) is None


async def test_a_change_writes_what_is_named(store: Store) -> None:
    one = fresh(tags={"a": "1"})
    store.sandboxes.create(one, [], None)
    changed = replace(one, state=State.STOPPED, reason=Reason.CRASHED, tags={"b": "2"})
    store.sandboxes.save(changed, ("state", "reason", "tags"), [])
    assert await store.sandboxes.get("default", one.id) == changed
    assert await page(store, tags={"a": "1"}) == []
    assert await page(store, tags={"b": "2"}) == [changed.id]


async def page(store: Store, *, tags: dict[str, str] | None = None, before: tuple[float, str] | None = None, limit: int = 100) -> list[str]:
    return [one.id for one in await store.sandboxes.page("default", states=LIVING, tags=tags or {}, before=before, limit=limit)]


async def test_pages_are_complete_and_newest_first_also_among_equals(store: Store) -> None:
    many = [fresh(created_at=float(number // 3)) for number in range(10)]
    for one in many:
        store.sandboxes.create(one, [], None)
    store.sandboxes.create(fresh(state=State.TERMINATED), [], None)
    found: list[str] = []
    before: tuple[float, str] | None = None
    while ids := await page(store, before=before, limit=3):
        found += ids
        before = next((one.created_at, one.id) for one in many if one.id == ids[-1])
    assert found == [one.id for one in sorted(many, key=lambda one: (one.created_at, one.id), reverse=True)]


async def test_tags_must_all_match(store: Store) -> None:
    both, one = fresh(tags={"a": "1", "b": "2"}), fresh(tags={"a": "1"})
    for each in (both, one):
        store.sandboxes.create(each, [], None)
    assert await page(store, tags={"a": "1", "b": "2"}) == [both.id]
    assert set(await page(store, tags={"a": "1"})) == {both.id, one.id}


async def test_ended_ones_are_forgotten_with_their_tags_once_they_are_removed(store: Store) -> None:
    old, unremoved, new = (
        fresh(state=State.TERMINATED, ended_at=at, removed=removed, tags={"a": "1"}) for at, removed in ((1.0, True), (1.0, False), (9.0, True))
    )
    for one in (old, unremoved, new):
        store.sandboxes.create(one, [], None)
    assert await store.sandboxes.forget_ended(5.0) == 1
    assert await store.sandboxes.get("default", old.id) is None
    left = await store.database.read(lambda connection: connection.execute(text("SELECT sandbox FROM sandbox_tags")).scalars().all())
    assert set(left) == {unremoved.id, new.id}
    assert [one.id for one in await store.sandboxes.unfinished()] == [unremoved.id]


async def test_two_living_sandboxes_of_a_project_cannot_have_one_name(store: Store) -> None:
    first = fresh(name="a")
    await store.sandboxes.create(first, [], None)
    with pytest.raises(IntegrityError):
        await store.sandboxes.create(fresh(name="a"), [], None)
    await store.sandboxes.create(fresh(name="a", project="another"), [], None)
    await store.sandboxes.save(replace(first, state=State.TERMINATED), ("state",), [])
    await store.sandboxes.create(fresh(name="a"), [], None)


async def test_events_come_back_in_order_and_by_what_they_are_about(store: Store) -> None:
    for number in range(1, 30):
        store.events.add([event(number, sandbox="sb-a" if number % 2 else "sb-b", kind="k" if number % 3 else "j", data={"n": number})])
    assert [one.seq for one in await store.events.since("default", after=3, sandbox="sb-a", kinds=("k",), limit=4)] == [5, 7, 11, 13]
    assert await store.events.since("another", after=0, sandbox=None, kinds=None, limit=4) == []
    assert (await store.events.since("default", after=28, sandbox=None, kinds=None, limit=4))[0] == event(29, sandbox="sb-a", kind="k", data={"n": 29})
    assert await store.events.last() == 29
    assert await store.events.forget(10.0, keep=100) == 9
    assert await store.events.forget(0.0, keep=5) == 15
    assert await store.events.last() == 29


async def test_a_change_that_fails_takes_no_other_down(store: Store) -> None:
    def fail(_: Connection) -> None:
        raise RuntimeError("on purpose")

    one, other = fresh(), fresh()
    waits = [store.sandboxes.create(one, [], None), store.database.write(fail), store.sandboxes.create(one, [], None), store.sandboxes.create(other, [], None)]
    results = await asyncio.gather(*waits, return_exceptions=True)
    assert [type(result) for result in results] == [type(None), RuntimeError, IntegrityError, type(None)]
    assert await page(store) == sorted([one.id, other.id], reverse=True)


async def test_what_was_given_to_write_is_there_after_an_orderly_end(path: Path) -> None:
    store = Store(f"sqlite:///{path}")
    store.open()
    for number in range(1, 1001):
        store.events.add([event(number)])
    await store.close()
    with create_engine(f"sqlite:///{path}").connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM events")).scalar() == 1000


async def test_a_key_is_kept_with_its_sandbox_and_its_answer(store: Store) -> None:
    claim, one = Claim("default", "k", "f"), fresh(created_at=5.0)
    await store.sandboxes.create(one, [], claim)
    assert await store.replays.all() == [Kept(claim, 5.0, one.id, None)]
    store.replays.answered(claim, Answer(201, b"{}"))
    assert await store.replays.all() == [Kept(claim, 5.0, one.id, Answer(201, b"{}"))]
    again = fresh(created_at=7.0)
    await store.sandboxes.create(again, [], claim)
    assert await store.replays.all() == [Kept(claim, 7.0, again.id, None)]
    await store.replays.drop(claim)
    await store.replays.add(Kept(claim, 8.0, None, Answer(200, b"1")))
    assert await store.replays.all() == [Kept(claim, 8.0, None, Answer(200, b"1"))]
    assert await store.replays.forget(9.0) == 1


def secret(name: str, project: str = "default") -> Secret:
    return Secret(id=new_id("se"), name=name, project=project, created_at=moment(1.5), changed_at=moment(1.5))


async def test_secrets_are_one_of_a_name_and_go_with_their_project(store: Store) -> None:
    one, theirs = secret("A"), secret("A", "other")
    assert await store.secrets.add(one, b"sealed")
    assert await store.secrets.add(theirs, b"theirs")
    assert not await store.secrets.add(secret("A"), b"again")
    assert await store.secrets.sealed("default", ["A", "B"]) == [(one, b"sealed")]
    assert (await store.secrets.change(one.id, b"newer", {"for": "tests"}, moment(1.5))) is not None
    changed = await store.secrets.change(one.id, b"new", None, moment(2.0))
    assert changed is not None
    assert (changed.version, changed.tags) == (3, {"for": "tests"})
    await store.secrets.used([one.id], moment(3.0))
    ((found, sealed),) = await store.secrets.sealed("default", ["A"])
    assert (found.changed_at, found.used_at, sealed) == (moment(2.0), moment(3.0), b"new")
    rule = Rule(to=["a.test"], ports=["443"], action="deny")
    kept = [await store.rules.add(project, rule, at=5.0, by="ke-x") for project in ("other", "default", "default")]
    assert await store.rules.all() == [("other", kept[0]), ("default", kept[1]), ("default", kept[2])]
    await store.rules.remove("other", kept[1].id)
    await store.rules.remove("default", kept[1].id)
    await store.accounts.remove_project("other")
    assert await store.rules.all() == [("default", kept[2])]
    assert await store.secrets.all("other") == []
    assert [await store.secrets.count(project) for project in ("default", "other")] == [1, 0]
    assert await store.secrets.remove("default", "A")
    assert not await store.secrets.remove("default", "A")
    assert await store.secrets.change(one.id, b"late", None, moment(4.0)) is None


async def test_an_older_database_keeps_its_sandboxes(path: Path) -> None:
    from alembic import command
    from alembic.config import Config

    engine = create_engine(f"sqlite:///{path}")
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["engine"] = engine
    command.upgrade(config, "0001")
    old = fresh(name="old")
    columns = [
        "id",
        "project",
        "name",
        "image",
        "image_id",
        "state",
        "cpu",
        "memory",
        "disk",
        "pids",
        "hostname",
        "sudo",
        "on_timeout",
        "created_at",
        "created_by",
        "removed",
    ]
    with engine.begin() as connection:
        names = ", ".join(columns)
        values = {name: getattr(old, name) for name in columns}
        statement = f"INSERT INTO sandboxes ({names}, env, tags) VALUES ({', '.join(f':{name}' for name in columns)}, '{{}}', '{{}}')"
        connection.execute(text(statement), values)
    engine.dispose()
    store = Store(f"sqlite:///{path}")
    store.open()
    assert await store.sandboxes.get("default", old.id) == replace(old, started_at=None)
    await store.close()


async def test_nobody_else_can_read_the_database(store: Store, path: Path) -> None:
    await store.sandboxes.create(fresh(), [], None)
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.glob("corral.db*")} == {0o600}


async def test_migrations_make_the_tables_that_the_queries_use(store: Store, path: Path) -> None:
    with create_engine(f"sqlite:///{path}").connect() as connection:
        context = MigrationContext.configure(connection)
        assert context.get_current_revision() == HEAD
        assert compare_metadata(context, tables.metadata) == []
    assert max(file.name for file in (MIGRATIONS / "versions").glob("0*.py"))[:4] == HEAD


async def test_a_database_of_a_newer_corral_is_refused(store: Store, path: Path) -> None:
    await store.database.run(text("UPDATE alembic_version SET version_num = '9999'"))
    newer = Store(f"sqlite:///{path}")
    with pytest.raises(SetupError, match="9999"):
        newer.open()
    await newer.close()


async def test_the_log_of_writes_is_put_to_rest_beside_them(store: Store, path: Path) -> None:
    for _ in range(50):
        await store.sandboxes.create(fresh(detail="x" * 20_000), [], None)
    before = path.stat().st_size
    await store.checkpoint()
    assert path.stat().st_size > before + 500_000
    await store.sandboxes.create(fresh(), [], None)


async def test_a_reader_sees_every_write_before_it(store: Store) -> None:
    for number in range(1, 200):
        store.database.write(
            lambda connection, number=number: (
                connection.execute(insert(tables.events), {"seq": number, "at": 0, "kind": "", "project": "", "data": "{}"}) and None
            )
        )
        assert await store.events.last() == number
