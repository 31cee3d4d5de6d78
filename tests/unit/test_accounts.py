"""Keys, projects and roles, on a real store."""

from __future__ import annotations

import itertools

import pytest
from sqlalchemy import text

from corral.control.accounts import DEFAULT, Accounts
from corral.control.events import EventLog
from corral.control.idempotency import Claim
from corral.control.roles import GRANTS, Actor, Permission, acting_in
from corral.errors import Conflict, Forbidden, NotFound, Unauthenticated
from corral.schema.account import KeyCreate, ProjectCreate, Role
from corral.schema.sandbox import State
from corral.store import Store
from harness.records import record


async def opened(store: Store) -> tuple[Accounts, str | None]:
    accounts = Accounts(store.accounts, itertools.count().__next__)
    return accounts, await accounts.open()


def project(name: str) -> ProjectCreate:
    return ProjectCreate.model_validate({"name": name})


async def test_the_first_start_makes_an_admin_key_and_no_other_does(store: Store) -> None:
    accounts, value = await opened(store)
    assert value is not None
    assert value.startswith("ck_")
    assert len(value) == 43
    later, again = await opened(store)
    assert again is None
    assert later.authenticate(value).role is Role.ADMIN
    assert accounts.authenticate(value) == later.authenticate(value)


async def test_the_store_has_no_key_in_it(store: Store) -> None:
    _, value = await opened(store)
    rows = await store.database.read(lambda connection: connection.execute(text("SELECT * FROM keys")).all())
    assert value is not None
    assert value[3:] not in repr(rows)


async def test_a_revoked_key_is_unknown_at_once_and_for_ever(store: Store) -> None:
    accounts, _ = await opened(store)
    key = await accounts.add_key(KeyCreate(name="k"))
    assert accounts.authenticate(key.value).key == key.id
    await accounts.revoke(key.id)
    for one in (accounts, (await opened(store))[0]):
        with pytest.raises(Unauthenticated):
            one.authenticate(key.value)
    with pytest.raises(NotFound):
        await accounts.revoke(key.id)


@pytest.mark.parametrize("value", ["", "ck_", "x" * 10_000, "ck_\udcff"])
async def test_what_is_no_key_is_unknown(store: Store, value: str) -> None:
    accounts, _ = await opened(store)
    with pytest.raises(Unauthenticated):
        accounts.authenticate(value)


async def test_the_last_admin_key_stays(store: Store) -> None:
    accounts, _ = await opened(store)
    (admin,) = accounts.keys()
    with pytest.raises(Conflict, match="last admin key"):
        await accounts.revoke(admin.id)
    await accounts.add_key(KeyCreate(name="second", role=Role.ADMIN))
    await accounts.revoke(admin.id)


async def test_removing_a_project_revokes_its_keys_or_does_nothing(store: Store) -> None:
    accounts, _ = await opened(store)
    await accounts.add_project(project("p"))
    member = await accounts.add_key(KeyCreate(name="m", project="p"))
    admin = await accounts.add_key(KeyCreate(name="a", project="p", role=Role.ADMIN))
    first = accounts.keys()[0]
    await accounts.revoke(first.id)
    with pytest.raises(Conflict, match="last admin key"):
        await accounts.remove_project("p")
    assert accounts.known(member.value)
    await accounts.add_key(KeyCreate(name="b", role=Role.ADMIN))
    await accounts.remove_project("p")
    assert not accounts.known(member.value)
    assert not accounts.known(admin.value)
    with pytest.raises(NotFound):
        accounts.project("p")


async def test_projects_have_names_of_their_own(store: Store) -> None:
    accounts, _ = await opened(store)
    await accounts.add_project(project("p"))
    with pytest.raises(Conflict):
        await accounts.add_project(project("p"))
    with pytest.raises(Conflict):
        await accounts.remove_project(DEFAULT)
    with pytest.raises(NotFound):
        await accounts.add_key(KeyCreate(name="k", project="none"))


def test_each_role_may_what_the_one_below_may() -> None:
    assert GRANTS[Role.READER] < GRANTS[Role.MEMBER] < GRANTS[Role.ADMIN] == set(Permission)


@pytest.mark.parametrize(("role", "permission", "needed"), [(Role.READER, Permission.USE, "member"), (Role.MEMBER, Permission.ADMINISTER, "admin")])
def test_a_refusal_names_the_role_that_is_needed(role: Role, permission: Permission, needed: str) -> None:
    with pytest.raises(Forbidden) as refused:
        Actor("ke", "default", role).require(permission)
    assert refused.value.hint is not None
    assert needed in refused.value.hint


def test_another_project_is_there_for_admins_only() -> None:
    assert acting_in(Actor("ke", "a", Role.ADMIN), "b").project == "b"
    assert acting_in(Actor("ke", "a", Role.READER), "a").project == "a"
    with pytest.raises(NotFound):
        acting_in(Actor("ke", "a", Role.MEMBER), "b")


async def test_a_later_project_of_the_name_begins_with_nothing(store: Store) -> None:
    accounts, _ = await opened(store)
    await accounts.add_project(project("p"))
    log = EventLog(store.events, itertools.count().__next__)
    await log.open()
    ended = record(State.TERMINATED, project="p", tags={"a": "b"}, removed=True, ended_at=1.0)
    await store.sandboxes.create(ended, [log.next("sandbox.created", "p")], Claim("p", "key", "request"))
    await accounts.remove_project("p")
    assert await store.events.since("p", after=0, sandbox=None, kinds=None, limit=10) == []
    assert await store.replays.all() == []
    assert await store.sandboxes.get("p", ended.id) is None
    # No number is used twice.
    assert await store.events.last() == 1
