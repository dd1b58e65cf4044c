"""The contract of the backend, apart from byte movement: answers, limits, life cycle."""

from __future__ import annotations

import dataclasses
import logging
import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.mem_cache.hicache_storage import (
    HiCacheStorageExtraInfo,
    PoolHitPolicy,
    PoolName,
    PoolTransfer,
    PoolTransferResult,
)

import host_pools
from conftest import AUTH_KEY, Daemon, wait_for
from rig import attach, keys, settings, storage_config

pytestmark = pytest.mark.server


# --- hit queries ----------------------------------------------------------------------------------------------------


def oracle(
    kv: list[bool], sidecars: dict[str, tuple[str, int, list[bool]]]
) -> tuple[int, dict[str, int], list[int]]:
    """The contract's words: prefix lengths acceptable to every pool, by brute force."""
    lengths = [p for p in range(1, len(kv) + 1) if all(kv[:p])]
    hits = {"kv": max(lengths)} if lengths else {}
    common = set(lengths)
    for name, (policy, window, present) in sidecars.items():
        if policy == "all_pages":
            accepted = {p for p in lengths if all(present[:p])}
        else:
            accepted = {p for p in lengths if all(present[max(0, p - window) : p])}
        if accepted:
            hits[name] = max(accepted)
        common &= accepted
    return max(common, default=0), hits, sorted(common)


def test_hit_queries_agree_with_the_definition(cluster: list[Daemon], unique: str) -> None:
    chance = random.Random(11)
    anchor, swa, mamba = host_pools.mha("page_first"), host_pools.mha("page_first"), host_pools.mamba("page_first")
    backend = attach(cluster, unique, anchor, {PoolName.SWA: swa, PoolName.MAMBA: mamba})
    for round_number in range(60):
        length = chance.randint(1, 10)
        names = keys(length, seed=round_number)
        density = chance.choice((0.5, 0.8, 0.97))
        presence = {name: [chance.random() < density for _ in names] for name in ("kv", "swa", "mamba")}
        for pool_name, pool in (("kv", anchor), ("swa", swa), ("mamba", mamba)):
            chosen = [index for index, flag in enumerate(presence[pool_name]) if flag]
            if not chosen:
                continue
            wanted = [names[index] for index in chosen]
            place = host_pools.slots(pool, [index % host_pools.PAGES for index in chosen])
            if pool_name == "kv":
                assert all(backend.batch_set_v1(wanted, place))
            else:
                transfer = PoolTransfer(name=PoolName(pool_name), host_indices=place, keys=wanted)
                assert all(backend.batch_set_v2([transfer])[PoolName(pool_name)])
        policies = {
            "swa": (chance.choice(["all_pages", "trailing_pages"]), chance.randint(1, 4)),
            "mamba": ("trailing_pages", 1),
        }
        transfers = [
            PoolTransfer(name=PoolName(name), keys=["placeholder"] * window, hit_policy=PoolHitPolicy(policy))
            for name, (policy, window) in policies.items()
        ]
        result = backend.batch_exists_v2(names, transfers)
        expected = oracle(
            presence["kv"], {name: (*policies[name], presence[name]) for name in ("swa", "mamba")}
        )
        found = {str(name): pages for name, pages in result.extra_pool_hit_pages.items()}
        assert (result.kv_hit_pages, found, result.restorable_prefix_pages) == expected, (presence, policies)
        assert backend.batch_exists(names) == expected[1].get("kv", 0)
    backend.close()


def test_hit_policies_at_their_edges(cluster: list[Daemon], unique: str) -> None:
    anchor, swa = host_pools.mha("page_first"), host_pools.mha("page_first")
    backend = attach(cluster, unique, anchor, {PoolName.SWA: swa})
    names = keys(3)
    assert all(backend.batch_set_v1(names, host_pools.slots(anchor, [0, 1, 2])))

    def ask(**transfer: Any) -> PoolTransferResult:
        return backend.batch_exists_v2(names, [PoolTransfer(**transfer)])

    # Block groups never limit a hit; an unknown policy or pool allows none.
    assert ask(name=PoolName.SWA, hit_policy=PoolHitPolicy.BLOCK_GROUPS).kv_hit_pages == 3
    assert ask(name=PoolName.SWA, hit_policy="from_the_future").kv_hit_pages == 0
    assert ask(name=PoolName.MAMBA, hit_policy=PoolHitPolicy.ALL_PAGES).kv_hit_pages == 0
    # No keys at all means a window of one page.
    one = PoolTransfer(name=PoolName.SWA, host_indices=host_pools.slots(swa, [0]), keys=[names[1]])
    assert backend.batch_set_v2([one]) == {PoolName.SWA: [True]}
    result = ask(name=PoolName.SWA, keys=None, hit_policy=PoolHitPolicy.TRAILING_PAGES)
    assert (result.kv_hit_pages, result.restorable_prefix_pages) == (2, [2])
    assert result.extra_pool_hit_pages == {PoolName.KV: 3, PoolName.SWA: 2}
    assert backend.batch_exists_v2([]).kv_hit_pages == 0
    assert backend.batch_exists_v2(names).kv_hit_pages == 3
    backend.close()


def test_an_older_result_type_is_enough(
    cluster: list[Daemon], unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    from memkv_sglang import backend as module

    @dataclasses.dataclass
    class OldResult:
        kv_hit_pages: int
        extra_pool_hit_pages: dict

    monkeypatch.setattr(module, "PoolTransferResult", OldResult)
    pool = host_pools.mha("page_first")
    backend = attach(cluster, unique, pool)
    names = keys(2)
    assert all(backend.batch_set_v1(names, host_pools.slots(pool, [0, 1])))
    assert backend.batch_exists_v2(names) == OldResult(2, {PoolName.KV: 2})
    backend.close()


def test_the_logical_anchor_holds_nothing_and_has_everything(cluster: list[Daemon], unique: str) -> None:
    anchor, side = host_pools.logical(), host_pools.v4_paged("page_first")
    name = PoolName.DEEPSEEK_V4_C4
    names = keys(5)
    for v1 in (0, 1):
        backend = attach(cluster, f"{unique}{v1}", anchor, {name: side}, extra={"interface_v1": v1})
        place = host_pools.slots(anchor, [0, 1, 2, 3, 4])
        assert backend.batch_set_v1(names, place) == [True] * 5
        assert backend.batch_get_v1(names, place) == [True] * 5
        pages = [anchor.get_dummy_flat_data_page() for _ in names]
        assert backend.batch_set(names, pages) is True
        assert all(a is b for a, b in zip(backend.batch_get(names, pages), pages, strict=True))
        assert backend.batch_exists_v2(names).kv_hit_pages == 5
        assert backend.batch_exists_v2(names, [PoolTransfer(name=name)]).kv_hit_pages == 0
        transfer = PoolTransfer(name=name, host_indices=host_pools.slots(side, [0, 1, 2]), keys=names[:3])
        assert backend.batch_set_v2([transfer]) == {name: [True] * 3}
        result = backend.batch_exists_v2(names, [PoolTransfer(name=name)])
        assert (result.kv_hit_pages, result.extra_pool_hit_pages) == (3, {PoolName.KV: 5, name: 3})
        backend.close()


def test_thousands_of_keys_in_one_question(cluster: list[Daemon], unique: str) -> None:
    pool = host_pools.mha("page_first")
    backend = attach(cluster, unique, pool)
    names = keys(20_000)
    stored = host_pools.PAGES
    assert all(backend.batch_set_v1(names[:stored], host_pools.slots(pool, list(range(stored)))))
    assert backend.batch_exists(names) == stored
    assert backend.batch_exists_v2(names).kv_hit_pages == stored
    assert backend.stats()["failures"] == {}
    backend.close()


# --- answers to calls that make no sense ---------------------------------------------------------------------------


def test_calls_that_make_no_sense_are_answered_in_shape(
    cluster: list[Daemon], unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    pool = host_pools.mha("page_first")
    backend = attach(cluster, unique, pool)
    names = keys(2)
    short = host_pools.slots(pool, [0])
    beyond = torch.arange(pool.size, pool.size + 2 * host_pools.PAGE)
    askew = host_pools.slots(pool, [0, 1]) + 1
    with caplog.at_level(logging.WARNING):
        for indices in (short, beyond, askew, None):
            assert backend.batch_get_v1(names, indices) == [False, False]
            assert backend.batch_set_v1(names, indices) == [False, False]
        assert backend.batch_set_v1(["", "k" * 513], host_pools.slots(pool, [0, 1])) == [False, False]
        assert backend.batch_exists([""]) == 0
        assert backend.batch_exists([7]) == 0
        unknown = PoolTransfer(name="never seen", host_indices=short, keys=names)
        assert backend.batch_get_v2([unknown]) == {"never seen": [False, False]}
        assert backend.batch_set_v2([unknown]) == {"never seen": [False, False]}
        nothing = PoolTransfer(name=PoolName.KV, host_indices=None, keys=None)
        assert backend.batch_get_v2([nothing]) == {PoolName.KV: []}
    assert backend.batch_get_v1([], torch.empty(0, dtype=torch.int64)) == []
    assert backend.stats()["failures"]["batch_get_v1"] >= 4
    # One line per operation, not one per failure.
    assert sum("batch_set_v1" in record.getMessage() for record in caplog.records) == 1
    backend.close()


def test_v0_calls_that_make_no_sense_are_answered_in_shape(cluster: list[Daemon], unique: str) -> None:
    pool = host_pools.mha("page_first")
    backend = attach(cluster, unique, pool, extra={"interface_v1": 0})
    names = keys(2)
    page = pool.get_dummy_flat_data_page()
    assert backend.batch_set(names, [page, page[:-1]]) is False
    assert backend.batch_set(names, [page]) is False
    assert backend.batch_set(names, None) is False
    assert backend.batch_get(names, [page]) == [None, None]
    assert backend.batch_get(names, [page, page[1:]]) == [None, None]
    assert backend.get(names[0], page) is None
    assert backend.batch_set(names, [page + 1, page + 2]) is True
    found = backend.batch_get(names)  # without targets the backend makes them
    assert [int(tensor.view(torch.bfloat16)[0]) for tensor in found] == [1, 2]
    strided = torch.stack([page + 3, page + 4], dim=1)[:, 0]
    assert backend.set("strided", strided) is True
    assert torch.equal(backend.get("strided", page.clone()), page + 3)
    backend.close()


def test_before_registration_everything_is_a_miss(cluster: list[Daemon], unique: str) -> None:
    backend = attach(cluster, unique)
    page = torch.zeros(8, dtype=torch.uint8)
    place = torch.arange(4)
    assert backend.batch_get(["a"], [page]) == [None]
    assert backend.batch_set(["a"], [page]) is False
    assert backend.batch_get_v1(["a"], place) == [False]
    assert backend.batch_set_v1(["a"], place) == [False]
    assert backend.batch_exists(["a"]) == 0
    assert backend.batch_exists_v2(["a"]) == PoolTransferResult(0, {}, [])
    backend.clear()
    backend.close()


# --- life cycle -----------------------------------------------------------------------------------------------------


def test_a_present_page_is_a_success_and_keeps_its_bytes(cluster: list[Daemon], unique: str) -> None:
    pool = host_pools.mha("page_first")
    backend = attach(cluster, unique, pool, enable_storage_metrics=True)
    names, place = keys(1), host_pools.slots(pool, [0])
    host_pools.fill(pool, 1)
    before = host_pools.page_bytes(pool, 0)
    assert backend.batch_set_v1(names, place) == [True]
    host_pools.fill(pool, 2)
    assert backend.batch_set_v1(names, place) == [True]
    assert backend.batch_get_v1(names, place) == [True]
    assert host_pools.page_bytes(pool, 0) == before
    # The second write moved nothing, so it is no bandwidth.
    assert backend.get_stats().backup_pgs == [1]
    backend.close()


class Recorder:
    """A space that notes where in their chain the pages of each put begin."""

    def __init__(self, space: Any) -> None:
        self._space = space
        self.begins: list[tuple[int, int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._space, name)

    def put_pages(self, keys: list[str], pages: Any, slots: bytes, seconds: float, position: int) -> Any:
        self.begins.append((position, len(keys)))
        return self._space.put_pages(keys, pages, slots, seconds, position)

    def put_from(self, keys: list[str], ptrs: Any, sizes: Any, seconds: float, position: int) -> Any:
        self.begins.append((position, len(keys)))
        return self._space.put_from(keys, ptrs, sizes, seconds, position)


def record(backend: Any, name: str) -> Recorder:
    """Notes the puts into one pool."""
    (store,) = backend._stores[name]
    recorder = Recorder(store.space)
    backend._stores = {**backend._stores, name: [dataclasses.replace(store, space=recorder)]}
    return recorder


def test_pages_are_put_at_their_place_in_the_chain(cluster: list[Daemon], unique: str) -> None:
    pool, extra = host_pools.mha("page_first"), host_pools.mha("page_first")
    backend = attach(cluster, unique, pool, {"extra": extra})
    anchor, other = record(backend, "kv"), record(backend, "extra")
    names = keys(5)
    place = host_pools.slots(pool, [0, 1])
    after_three = HiCacheStorageExtraInfo(prefix_keys=names[:3])
    assert backend.batch_set_v1(names[3:], place, after_three) == [True, True]
    assert backend.batch_set_v1(names[:2], place, HiCacheStorageExtraInfo(prefix_keys=[])) == [True, True]
    assert backend.batch_set_v1(names[:2], place) == [True, True]
    assert anchor.begins == [(4, 2), (1, 2), (0, 2)]
    whole = PoolTransfer(name="extra", host_indices=host_pools.slots(extra, [0, 1]), keys=names[3:])
    tail = PoolTransfer(
        name="extra",
        host_indices=host_pools.slots(extra, [0]),
        keys=names[4:],
        hit_policy=PoolHitPolicy.TRAILING_PAGES,
    )
    assert backend.batch_set_v2([whole], after_three) == {"extra": [True, True]}
    assert backend.batch_set_v2([tail], after_three) == {"extra": [True]}
    assert other.begins == [(4, 2), (0, 1)], "where trailing pages begin is not known"
    backend.close()


def test_clear_takes_its_own_pages_and_no_others(cluster: list[Daemon], unique: str) -> None:
    pool, side = host_pools.mha("page_first"), host_pools.mamba("page_first")
    mine = attach(cluster, unique, pool, {PoolName.MAMBA: side})
    twin = attach(cluster, unique, pool, {PoolName.MAMBA: side})
    others = [
        attach(cluster, f"{unique}/other", pool),
        attach(cluster, unique, pool, extra={"memkv_tag": "other"}),
        attach(cluster, unique, pool, tp_rank=1, tp_size=2),
    ]
    names, place = keys(6), host_pools.slots(pool, [0, 1, 2, 3, 4, 5])
    states = [PoolTransfer(name=PoolName.MAMBA, host_indices=torch.arange(6), keys=names)]
    for backend in (mine, *others):
        assert all(backend.batch_set_v1(names, place))
    assert all(mine.batch_set_v2(states)[PoolName.MAMBA])
    mine.clear()
    assert twin.batch_exists(names) == 0
    assert twin.batch_get_v1(names, place) == [False] * 6
    assert twin.batch_get_v2(states)[PoolName.MAMBA] == [False] * 6
    for backend in others:
        assert backend.batch_exists(names) == 6
    assert all(mine.batch_set_v1(names, place))
    for backend in (mine, twin, *others):
        backend.close()


def test_attach_and_detach_again_and_again(cluster: list[Daemon], unique: str) -> None:
    import threading

    pool = host_pools.mha("page_first")
    names, place = keys(3), host_pools.slots(pool, [0, 1, 2])
    threads = threading.active_count()
    for _ in range(20):
        backend = attach(cluster, unique, pool)
        assert all(backend.batch_set_v1(names, place))
        assert backend.batch_exists(names) == 3
        backend.close()
        backend.close()
        assert backend.batch_exists(names) == 0
        assert backend.batch_get_v1(names, place) == [False] * 3
        assert backend.batch_set_v1(names, place) == [False] * 3
        backend.clear()
    assert threading.active_count() == threads


def test_native_threads_end_with_the_backend(cluster: list[Daemon], unique: str) -> None:
    def threads() -> int:
        import os

        return len(os.listdir("/proc/self/task"))

    pool = host_pools.mha("page_first")
    attach(cluster, unique, pool).close()
    before = threads()
    kept = [attach(cluster, unique, pool) for _ in range(5)]
    assert threads() > before
    for backend in kept:
        backend.close()
    wait_for(lambda: threads() <= before, "the end of the client's threads")


def test_a_pool_group_is_unwrapped(cluster: list[Daemon], unique: str) -> None:
    pool = host_pools.mha("page_first")
    group = SimpleNamespace(anchor_entry=SimpleNamespace(host_pool=pool))
    backend = attach(cluster, unique, group)
    assert all(backend.batch_set_v1(keys(1), host_pools.slots(pool, [0])))
    backend.close()


def test_a_pool_may_come_late(cluster: list[Daemon], unique: str) -> None:
    pool, late = host_pools.mha("page_first"), host_pools.mamba("page_first")
    backend = attach(cluster, unique, pool)
    transfer = PoolTransfer(name=PoolName.MAMBA, host_indices=torch.arange(2), keys=keys(2))
    assert backend.batch_set_v2([transfer]) == {PoolName.MAMBA: [False, False]}
    backend.register_mem_host_pool_v2(late, PoolName.MAMBA)
    assert backend.batch_set_v2([transfer]) == {PoolName.MAMBA: [True, True]}
    backend.close()


# --- metrics --------------------------------------------------------------------------------------------------------


def test_bandwidth_samples_reach_sglang_once(cluster: list[Daemon], unique: str) -> None:
    from sglang.srt.observability.metrics_collector import StorageMetrics

    pool = host_pools.mha("page_first")
    backend = attach(cluster, unique, pool, enable_storage_metrics=True)
    names, place = keys(4), host_pools.slots(pool, [0, 1, 2, 3])
    assert all(backend.batch_set_v1(names, place))
    assert all(backend.batch_get_v1(names, place))
    stats = backend.get_stats()
    assert isinstance(stats, StorageMetrics)
    assert (stats.prefetch_pgs, stats.backup_pgs) == ([4], [4])
    assert len(stats.prefetch_bandwidth) == len(stats.backup_bandwidth) == 1
    assert stats.prefetch_bandwidth[0] > 0
    assert backend.get_stats() == StorageMetrics()
    backend.close()


def test_without_metrics_there_are_none(cluster: list[Daemon], unique: str) -> None:
    backend = attach(cluster, unique, host_pools.mha("page_first"))
    assert backend.get_stats() is None
    assert backend.stats()["failures"] == {}
    backend.close()


# --- configuration --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extra", "text"),
    [
        ({"memkv_srevers": "a:1"}, "srevers"),
        ({"memkv_auth_key": "5e"}, "auth_key"),
        ({"memkv_transport": "pigeon"}, "pigeon"),
        ({"memkv_op_timeout": "soon"}, "op_timeout"),
        ({"memkv_config": "/nonexistent/memkv.yaml"}, "nonexistent"),
        ({"memkv_auth_key_file": "/nonexistent/key", "memkv_auth_key": None}, "nonexistent"),
    ],
)
def test_a_wrong_setting_stops_the_attach_and_is_named(
    extra: dict[str, Any], text: str, cluster: list[Daemon], unique: str
) -> None:
    values = {name: value for name, value in settings(cluster, **extra).items() if value is not None}
    from memkv_sglang.backend import MemKVHiCacheStorage

    with pytest.raises(Exception, match=text):
        MemKVHiCacheStorage(storage_config(unique, values), {})


def test_a_wrong_key_stops_the_attach(cluster: list[Daemon], unique: str) -> None:
    import memkv_sglang

    with pytest.raises(memkv_sglang.UnauthenticatedError, match="key"):
        attach(cluster, unique, extra={"memkv_auth_key": "11" * 32})


def test_the_environment_is_used_and_the_extra_config_wins(
    cluster: list[Daemon], unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from memkv_sglang.backend import MemKVHiCacheStorage

    monkeypatch.setenv("MEMKV_SERVERS", cluster[0].address)
    monkeypatch.setenv("MEMKV_AUTH_KEY", AUTH_KEY)
    backend = MemKVHiCacheStorage(storage_config(unique, {}), {})
    assert [server["address"] for server in backend._client.servers()] == [cluster[0].address]
    backend.close()
    backend = MemKVHiCacheStorage(storage_config(unique, {"memkv_servers": [cluster[1].address]}), {})
    assert [server["address"] for server in backend._client.servers()] == [cluster[1].address]
    backend.close()
