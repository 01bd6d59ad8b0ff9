"""What the key manager relies on in etcd, of the twin and of a real one alike."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeAlias

import pytest

from pipeline.adapters.etcd import PAGE_KEYS, EtcdStore
from pipeline.errors import OncesignError, StoreUnavailable
from pipeline.ports import Compare, Store, Txn
from pipeline.testing.clock import TwinClock
from pipeline.testing.store import TwinEtcd, TwinStore

Wait: TypeAlias = Callable[[float], Awaitable[None]]


@pytest.fixture(params=["twin", pytest.param("etcd", marks=pytest.mark.integration)])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    made: Store
    if request.param == "twin":
        made = TwinStore(TwinEtcd(TwinClock()))
    else:
        made = EtcdStore(request.getfixturevalue("etcd_server"))
    yield made
    await made.close()


@pytest.fixture
def wait(store: Store) -> Wait:
    """Let time pass: at once for the twin."""
    if isinstance(store, TwinStore):
        clock = store.server.clock
        assert isinstance(clock, TwinClock)
        return clock.advance
    return asyncio.sleep


@pytest.fixture
def root(deployment: str) -> str:
    return f"/oncesign/{deployment}"


def put(key: str, value: bytes, *compares: Compare, lease: int = 0) -> Txn:
    return Txn(compares=compares, puts=((key, value),), gets=(key,), lease=lease)


async def test_a_missing_key_is_none(store: Store, root: str) -> None:
    assert await store.get(f"{root}/nothing") is None
    assert await store.list(f"{root}/") == []


async def test_revisions_are_those_of_the_transaction(store: Store, root: str) -> None:
    first = await store.commit(put(f"{root}/a", b"1"))
    second = await store.commit(put(f"{root}/a", b"2"))
    assert first.succeeded
    assert second.revision == first.revision + 1
    found = await store.get(f"{root}/a")
    assert found is not None
    assert (found.key, found.value) == (f"{root}/a", b"2")
    assert (found.create_revision, found.mod_revision) == (first.revision, second.revision)


async def test_everything_in_one_transaction_has_one_revision(store: Store, root: str) -> None:
    await store.commit(put(f"{root}/old", b""))
    txn = Txn(compares=(), puts=((f"{root}/a", b"1"), (f"{root}/b", b"")), deletes=(f"{root}/old",))
    result = await store.commit(txn)
    found = await store.list(f"{root}/")
    assert [(kv.key, kv.value, kv.mod_revision) for kv in found] == [
        (f"{root}/a", b"1", result.revision),
        (f"{root}/b", b"", result.revision),
    ]


async def test_a_transaction_that_writes_nothing_makes_no_revision(store: Store, root: str) -> None:
    before = (await store.commit(put(f"{root}/a", b"1"))).revision
    result = await store.commit(Txn(compares=(), deletes=(f"{root}/nothing",)))
    assert result.succeeded
    assert result.revision == before


@pytest.mark.parametrize("holds", [True, False])
@pytest.mark.parametrize("target", ["create", "mod", "value", "absent"])
async def test_every_compare_decides(store: Store, root: str, target: str, *, holds: bool) -> None:
    key = f"{root}/a"
    created = (await store.commit(put(key, b"1"))).revision
    changed = (await store.commit(put(key, b"2"))).revision
    compare = {
        "create": Compare(key, create_revision=created if holds else changed),
        "mod": Compare(key, mod_revision=changed if holds else created),
        "value": Compare(key, value=b"2" if holds else b"1"),
        "absent": Compare(f"{root}/nothing" if holds else key, mod_revision=0),
    }[target]
    result = await store.commit(Txn(compares=(compare,), puts=((key, b"3"),), gets=(key, f"{root}/nothing")))
    assert result.succeeded is holds
    found = await store.get(key)
    assert found is not None
    assert found.value == (b"3" if holds else b"2")
    if not holds:
        assert dict(result.reads) == {key: found, f"{root}/nothing": None}


async def test_the_value_of_a_missing_key_equals_nothing(store: Store, root: str) -> None:
    result = await store.commit(put(f"{root}/a", b"1", Compare(f"{root}/nothing", value=b"")))
    assert not result.succeeded


async def test_one_compare_that_fails_stops_all(store: Store, root: str) -> None:
    good, bad = Compare(f"{root}/a", create_revision=0), Compare(f"{root}/b", create_revision=7)
    result = await store.commit(Txn(compares=(good, bad), puts=((f"{root}/a", b"1"), (f"{root}/b", b"1"))))
    assert not result.succeeded
    assert await store.list(f"{root}/") == []


async def test_a_deleted_key_is_created_anew(store: Store, root: str) -> None:
    first = await store.commit(put(f"{root}/a", b"1"))
    await store.commit(Txn(compares=(), deletes=(f"{root}/a",)))
    assert await store.get(f"{root}/a") is None
    await store.commit(put(f"{root}/a", b"1", Compare(f"{root}/a", create_revision=0)))
    found = await store.get(f"{root}/a")
    assert found is not None
    assert found.create_revision == found.mod_revision > first.revision


async def test_a_key_written_twice_in_one_transaction_is_refused(store: Store, root: str) -> None:
    twice = ((f"{root}/a", b"1"), (f"{root}/a", b"2"))
    with pytest.raises(OncesignError, match="duplicate key"):
        await store.commit(Txn(compares=(), puts=twice))
    with pytest.raises(OncesignError, match="duplicate key"):
        await store.commit(Txn(compares=(), puts=twice[:1], deletes=(f"{root}/a",)))
    assert await store.list(f"{root}/") == []


async def test_128_operations_fit_and_129_are_refused(store: Store, root: str) -> None:
    puts = tuple((f"{root}/{i:03}", b"x") for i in range(129))
    keys = tuple(key for key, _ in puts)
    full = Txn(tuple(Compare(key, mod_revision=0) for key in keys[:128]), puts[:128], gets=keys[:128])
    assert (await store.commit(full)).succeeded
    again = await store.commit(full)
    assert not again.succeeded
    assert all(again.reads[key] for key in keys[:128])
    for too_many in (Txn((), puts), Txn((), gets=keys), Txn(tuple(Compare(key, mod_revision=0) for key in keys))):
        with pytest.raises(OncesignError, match="more than 128 operations"):
            await store.commit(too_many)


async def test_a_list_takes_all_pages_and_only_the_prefix(store: Store, root: str) -> None:
    count = PAGE_KEYS + 130
    for start in range(0, count, 125):
        keys = [f"{root}/k/{i:05}" for i in range(start, min(count, start + 125))]
        await store.commit(Txn((), tuple((key, b"v") for key in keys)))
    await store.commit(Txn((), ((f"{root}/k", b"no"), (f"{root}/k0", b"no"), (f"{root}/l/1", b"no"))))
    found = await store.list(f"{root}/k/")
    assert [kv.key for kv in found] == [f"{root}/k/{i:05}" for i in range(count)]


async def test_any_bytes_and_any_name_survive(store: Store, root: str) -> None:
    value = bytes(range(256))
    await store.commit(put(f"{root}/ключ", value))
    found = await store.get(f"{root}/ключ")
    assert found is not None
    assert found.value == value


async def test_of_many_rivals_one_wins(store: Store, root: str) -> None:
    rivals = [put(f"{root}/leader", str(i).encode(), Compare(f"{root}/leader", create_revision=0)) for i in range(20)]
    results = await asyncio.gather(*(store.commit(rival) for rival in rivals))
    assert sum(result.succeeded for result in results) == 1
    winner = await store.get(f"{root}/leader")
    assert all(result.succeeded or result.reads[f"{root}/leader"] == winner for result in results)


async def test_a_revoked_lease_takes_its_keys(store: Store, root: str) -> None:
    lease = await store.grant_lease(60)
    await store.commit(put(f"{root}/leader", b"me", lease=lease))
    await store.commit(put(f"{root}/other", b"stays"))
    assert await store.keep_alive(lease) is True
    await store.revoke_lease(lease)
    assert [kv.key for kv in await store.list(f"{root}/")] == [f"{root}/other"]
    assert await store.keep_alive(lease) is False
    await store.revoke_lease(lease)  # again is no error


async def test_a_put_without_the_lease_keeps_the_key(store: Store, root: str) -> None:
    lease = await store.grant_lease(60)
    await store.commit(put(f"{root}/a", b"1", lease=lease))
    await store.commit(put(f"{root}/a", b"2"))
    await store.revoke_lease(lease)
    assert await store.get(f"{root}/a") is not None


async def test_a_lease_that_is_gone_carries_no_key(store: Store, root: str) -> None:
    lease = await store.grant_lease(60)
    await store.revoke_lease(lease)
    with pytest.raises(StoreUnavailable, match="lease not found"):
        await store.commit(put(f"{root}/leader", b"me", lease=lease))
    assert await store.get(f"{root}/leader") is None


async def test_a_lease_lives_while_it_is_kept_alive(store: Store, wait: Wait, root: str) -> None:
    lease = await store.grant_lease(2)
    await store.commit(put(f"{root}/leader", b"me", lease=lease))
    for _ in range(3):
        await wait(1.0)
        assert await store.keep_alive(lease) is True
    assert await store.get(f"{root}/leader") is not None
    await wait(5.0)
    assert await store.get(f"{root}/leader") is None
    assert await store.keep_alive(lease) is False


async def test_a_closed_store_may_be_closed_again(store: Store) -> None:
    await store.get("/anything")
    await store.close()
    await store.close()
