"""Every kind of host pool, byte for byte through every interface, on real daemons.

One backend writes; the pool is wiped; another backend reads into other pages.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sglang.srt.mem_cache.hicache_storage import PoolName, PoolTransfer

import host_pools
from conftest import TRANSPORT, Daemon
from host_pools import CASES, Case
from rig import attach, keys

pytestmark = pytest.mark.server

WRITTEN = [9, 2, 5, 0, 11]
READ = [1, 8, 0, 10, 4]

case_of = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)


def check_moved(pool: Any, before: list[list[bytes]]) -> None:
    """The read pages hold what the written ones held; every other byte of the pool is still zero."""
    for page, expected in zip(READ, before, strict=True):
        assert host_pools.page_bytes(pool, page) == expected
    for page in set(range(host_pools.PAGES)) - set(READ):
        assert not any(any(part) for part in host_pools.page_bytes(pool, page))


def check_not_copied(case: Case, backend: Any) -> None:
    """Over RDMA the pages of a pool with addresses move between its own tensors and the server: none is copied on this
    side, and none goes through a socket. The pages of any other pool are copied, and counted as copied."""
    if TRANSPORT != "rdma":
        return
    moved = backend._client.stats()["rdma"]
    copied = moved["bounced_pages"] + moved["framed_pages"]
    if case.how == "addressed":
        assert moved["direct_pages"] >= len(WRITTEN), moved
        assert moved["direct_bytes"] > 0, moved
        assert copied == 0, moved
    else:
        assert copied >= len(WRITTEN), moved


def filled(case: Case) -> tuple[Any, list[list[bytes]]]:
    pool = case.make()
    host_pools.fill(pool, seed=hash(case.id) % 2**31)
    return pool, [host_pools.page_bytes(pool, page) for page in WRITTEN]


@case_of
def test_v1(case: Case, cluster: list[Daemon], unique: str) -> None:
    pool, before = filled(case)
    names = keys(len(WRITTEN))
    writer = attach(cluster, unique, pool)
    assert writer.batch_set_v1(names, host_pools.slots(pool, WRITTEN)) == [True] * len(names)
    check_not_copied(case, writer)
    writer.close()
    host_pools.wipe(pool)
    reader = attach(cluster, unique, pool)
    assert reader.batch_exists(names) == len(names)
    assert reader.batch_get_v1(names, host_pools.slots(pool, READ)) == [True] * len(names)
    check_not_copied(case, reader)
    reader.close()
    check_moved(pool, before)


@case_of
def test_v2(case: Case, cluster: list[Daemon], unique: str) -> None:
    pool, before = filled(case)
    names = keys(len(WRITTEN))
    anchor = host_pools.logical()

    def transfer(pages: list[int]) -> list[PoolTransfer]:
        return [PoolTransfer(name=PoolName.SWA, host_indices=host_pools.slots(pool, pages), keys=names)]

    writer = attach(cluster, unique, anchor, {PoolName.SWA: pool})
    assert writer.batch_set_v2(transfer(WRITTEN)) == {PoolName.SWA: [True] * len(names)}
    check_not_copied(case, writer)
    writer.close()
    host_pools.wipe(pool)
    reader = attach(cluster, unique, anchor, {PoolName.SWA: pool})
    assert reader.batch_get_v2(transfer(READ)) == {PoolName.SWA: [True] * len(names)}
    check_not_copied(case, reader)
    reader.close()
    check_moved(pool, before)


def write_v0(backend: Any, pool: Any, names: list[str]) -> None:
    """What SGLang's controller does without ``interface_v1``."""
    pages = [pool.get_data_page(slot) for slot in host_pools.slots(pool, WRITTEN)[:: pool.page_size].tolist()]
    assert backend.batch_set(names, pages) is True


def read_v0(backend: Any, pool: Any, names: list[str]) -> None:
    targets = [pool.get_dummy_flat_data_page() for _ in names]
    found = backend.batch_get(names, targets)
    for slot, target, page in zip(host_pools.slots(pool, READ)[:: pool.page_size], targets, found, strict=True):
        assert page is target
        pool.set_from_flat_data_page(int(slot), page)


def write_v1(backend: Any, pool: Any, names: list[str]) -> None:
    assert all(backend.batch_set_v1(names, host_pools.slots(pool, WRITTEN)))


def read_v1(backend: Any, pool: Any, names: list[str]) -> None:
    assert all(backend.batch_get_v1(names, host_pools.slots(pool, READ)))


@pytest.mark.parametrize("case", [case for case in CASES if case.flat], ids=lambda case: case.id)
def test_v0(case: Case, cluster: list[Daemon], unique: str) -> None:
    pool, before = filled(case)
    names = keys(len(WRITTEN))
    extra = {"interface_v1": 0}
    writer = attach(cluster, unique, pool, extra=extra)
    write_v0(writer, pool, names)
    writer.close()
    host_pools.wipe(pool)
    reader = attach(cluster, unique, pool, extra=extra)
    read_v0(reader, pool, names)
    assert reader.exists(names[0])
    assert not reader.exists("absent")
    assert reader.get("absent", pool.get_dummy_flat_data_page()) is None
    reader.close()
    check_moved(pool, before)


@pytest.mark.parametrize("case", [case for case in CASES if case.flat], ids=lambda case: case.id)
@pytest.mark.parametrize(
    ("write", "read", "writes_v1"), [(write_v0, read_v1, 0), (write_v1, read_v0, 1)], ids=["v0-v1", "v1-v0"]
)
def test_v0_and_v1_share_pages_or_keep_apart(
    case: Case,
    write: Callable[..., None],
    read: Callable[..., None],
    writes_v1: int,
    cluster: list[Daemon],
    unique: str,
) -> None:
    pool, before = filled(case)
    names = keys(len(WRITTEN))
    writer = attach(cluster, unique, pool, extra={"interface_v1": writes_v1})
    write(writer, pool, names)
    writer.close()
    host_pools.wipe(pool)
    reader = attach(cluster, unique, pool, extra={"interface_v1": 1 - writes_v1})
    if reader.batch_exists(names):
        read(reader, pool, names)
        check_moved(pool, before)
    else:
        # Only pools whose pieces cannot be shown to spell the flat page may keep apart.
        assert case.id.startswith(("mamba", "v4_paged-layer_first", "v4_state-layer_first"))
        assert reader.batch_get_v1(names, host_pools.slots(pool, READ)) == [False] * len(names)
    reader.close()


def test_pieces_in_an_order_of_their_own_keep_apart(cluster: list[Daemon], unique: str) -> None:
    """A layer-first pool lists k0, v0, k1, v1; its flat page has all of K first. Without a view that shows the order,
    the two forms must not meet, though their pages are equally long."""
    pool = host_pools.mha("layer_first")
    pool.get_data_page = lambda index, flat=True, original=pool.get_data_page: original(index, True)
    host_pools.fill(pool, 4)
    before = [host_pools.page_bytes(pool, page) for page in WRITTEN]
    names = keys(len(WRITTEN))
    copying = attach(cluster, unique, pool, extra={"interface_v1": 0})
    write_v0(copying, pool, names)
    direct = attach(cluster, unique, pool)
    assert direct.batch_exists(names) == 0
    write_v1(direct, pool, names)
    for backend, read in ((copying, read_v0), (direct, read_v1)):
        host_pools.wipe(pool)
        read(backend, pool, names)
        check_moved(pool, before)
        backend.close()


@case_of
def test_how_a_pool_is_reached(case: Case) -> None:
    from memkv_sglang import pools

    view = pools.view_pool(case.make(), "x")
    assert ("addressed" if view.page_map else "copied") == case.how
    assert not view.logical


@pytest.mark.parametrize("trouble", ["irregular", "outside", "raises", "empty"])
def test_addresses_that_cannot_be_trusted_are_not_used(trouble: str) -> None:
    """The pool's flat pages are still there, so the pool is copied."""
    from memkv_sglang import pools

    pool = host_pools.mha("page_first")
    original = pool.get_page_buffer_meta
    middle = host_pools.PAGES // 2 * host_pools.PAGE

    def meta(indices: torch.Tensor) -> Any:
        if trouble == "raises":
            raise NotImplementedError
        if trouble == "empty":
            return [], []
        ptrs, sizes = original(indices)
        if trouble == "outside":
            return [ptr + 4096 * 4096 for ptr in ptrs], sizes
        starts = indices[:: host_pools.PAGE].tolist()
        return [ptr + 8 * (starts[i // 2] == middle) for i, ptr in enumerate(ptrs)], sizes

    pool.get_page_buffer_meta = meta
    view = pools.view_pool(pool, "x")
    assert view.page_map is None
    assert view.flat_dtype == torch.bfloat16
    assert not view.logical


def test_an_asymmetric_pool_without_addresses_is_refused(cluster: list[Daemon], unique: str) -> None:
    pool = host_pools.mha("page_first", v_head_dim=4)
    with pytest.raises(ValueError, match="interface_v1"):
        attach(cluster, unique, pool, extra={"interface_v1": 0})


@pytest.mark.parametrize(("rank", "size"), [(0, 1), (1, 2)])
def test_heads_are_shared_between_engines_of_different_tensor_parallel_size(
    rank: int, size: int, cluster: list[Daemon], unique: str
) -> None:
    """A rank with two heads writes; the two ranks with one head each that it stands for read their half, and back."""
    names = keys(len(WRITTEN))
    wide = host_pools.mha("page_head")
    host_pools.fill(wide, 3)
    lcm = 2 * size
    writer = attach(
        cluster, unique, wide, tp_rank=rank, tp_size=size, tp_lcm_size=lcm, should_split_heads=True
    )
    assert all(writer.batch_set_v1(names, host_pools.slots(wide, WRITTEN)))
    for head in range(2):
        narrow = one_head()
        reader = attach(cluster, unique, narrow, tp_rank=2 * rank + head, tp_size=lcm, tp_lcm_size=lcm)
        assert reader.batch_exists(names) == len(names)
        assert all(reader.batch_get_v1(names, host_pools.slots(narrow, READ)))
        for theirs, ours in zip(WRITTEN, READ, strict=True):
            read, written = narrow.kv_buffer[:, ours, 0], wide.kv_buffer[:, theirs, head]
            assert torch.equal(read.contiguous().view(torch.int16), written.contiguous().view(torch.int16))
        reader.close()
    before = [host_pools.page_bytes(wide, page) for page in WRITTEN]
    host_pools.wipe(wide)
    assert all(writer.batch_get_v1(names, host_pools.slots(wide, READ)))
    check_moved(wide, before)
    # A page of which only one half is stored is a miss.
    half = attach(cluster, unique, one_head(), tp_rank=2 * rank, tp_size=lcm, tp_lcm_size=lcm)
    others = keys(2, seed=1)
    assert all(half.batch_set_v1(others, host_pools.slots(wide, [0, 1])))
    assert writer.batch_exists(others) == 0
    assert writer.batch_get_v1(others, host_pools.slots(wide, [0, 1])) == [False, False]
    half.close()
    writer.close()


def one_head() -> Any:
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool
    from sglang.srt.mem_cache.pool_host.mha import MHATokenToKVPoolHost

    device = MHATokenToKVPool(
        size=host_pools.PAGES * host_pools.PAGE,
        page_size=host_pools.PAGE,
        dtype=torch.bfloat16,
        head_num=1,
        head_dim=8,
        layer_num=host_pools.LAYERS,
        device="cpu",
        enable_memory_saver=False,
    )
    return MHATokenToKVPoolHost(
        device.get_device_pool_infos()[0].buffer_info,
        1.0,
        0,
        host_pools.PAGE,
        "page_head",
        pin_memory=False,
        device_capacity_tokens=device.size,
        start_layer=device.start_layer,
        end_layer=device.end_layer,
    )


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"tp_lcm_size": 3, "tp_size": 2}, "multiple"),
        ({"tp_lcm_size": 4}, "divide the heads"),
    ],
)
def test_heads_that_cannot_be_divided_are_refused(
    fields: dict[str, int], text: str, cluster: list[Daemon], unique: str
) -> None:
    with pytest.raises(ValueError, match=text):
        attach(cluster, unique, host_pools.mha("page_head"), should_split_heads=True, **fields)


def test_heads_are_not_divided_without_addresses(cluster: list[Daemon], unique: str) -> None:
    with pytest.raises(ValueError, match="interface_v1"):
        attach(
            cluster,
            unique,
            host_pools.mha("page_head"),
            extra={"interface_v1": 0},
            should_split_heads=True,
            tp_lcm_size=2,
        )
