"""Servers that die, freeze, come back or never existed: misses in time, never an exception."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from sglang.srt.mem_cache.hicache_storage import PoolName, PoolTransfer

import host_pools
from conftest import Daemon, wait_for
from rig import attach, keys

pytestmark = pytest.mark.server

CALL_SECONDS = 10.0
PAGES = list(range(host_pools.PAGES))


def calls(backend: Any, pool: Any, side: Any, names: list[str]) -> dict[str, Callable[[], Any]]:
    """Every call that SGLang makes, with what a failure must look like."""
    place = host_pools.slots(pool, PAGES)
    states = [PoolTransfer(name=PoolName.MAMBA, host_indices=host_pools.slots(side, PAGES), keys=names)]
    return {
        "batch_exists": lambda: backend.batch_exists(names),
        "batch_exists_v2": lambda: backend.batch_exists_v2(names, states).kv_hit_pages,
        "batch_get_v1": lambda: sum(backend.batch_get_v1(names, place)),
        "batch_set_v1": lambda: sum(backend.batch_set_v1(names, place)),
        "batch_get_v2": lambda: sum(backend.batch_get_v2(states)[PoolName.MAMBA]),
        "batch_set_v2": lambda: sum(backend.batch_set_v2(states)[PoolName.MAMBA]),
        "clear": lambda: backend.clear() or 0,
    }


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.monotonic()
    return call(), time.monotonic() - start


def test_a_killed_server_is_a_miss_and_a_restarted_one_is_used_again(
    daemons: Callable[..., Daemon], unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    servers = [daemons() for _ in range(3)]
    pool = host_pools.mha("page_first")
    backend = attach(servers, unique, pool)
    names = keys(host_pools.PAGES)
    place = host_pools.slots(pool, PAGES)
    host_pools.fill(pool, 1)
    before = [host_pools.page_bytes(pool, page) for page in PAGES]
    assert all(backend.batch_set_v1(names, place))
    with caplog.at_level(logging.WARNING, "memkv_sglang"):
        servers[1].kill()
        host_pools.wipe(pool)
        found, seconds = timed(lambda: backend.batch_get_v1(names, place))
        assert seconds < CALL_SECONDS
        assert len(found) == len(names)
        for page, flag in zip(PAGES, found, strict=True):
            if flag:
                assert host_pools.page_bytes(pool, page) == before[page]
        assert 0 < sum(found) < len(names)
        for _ in range(20):
            assert not all(backend.batch_get_v1(names, place))
    assert len([r for r in caplog.records if "batch_get_v1" in r.getMessage()]) == 1
    servers[1].start()
    host_pools.fill(pool, 1)
    wait_for(lambda: all(backend.batch_set_v1(names, place)), "recovery after the restart")
    host_pools.wipe(pool)
    assert all(backend.batch_get_v1(names, place))
    assert [host_pools.page_bytes(pool, page) for page in PAGES] == before
    backend.close()


def test_a_frozen_server_costs_seconds_not_the_engine(daemons: Callable[..., Daemon], unique: str) -> None:
    servers = [daemons(), daemons()]
    pool, side = host_pools.mha("page_first"), host_pools.mamba("page_first")
    backend = attach(servers, unique, pool, {PoolName.MAMBA: side})
    names = keys(host_pools.PAGES)
    every = calls(backend, pool, side, names)
    assert every["batch_set_v1"]() == every["batch_set_v2"]() == len(names)
    servers[0].freeze()
    for name, call in every.items():
        answer, seconds = timed(call)
        assert seconds < CALL_SECONDS, name
        assert isinstance(answer, int), name
        assert answer < len(names), name
    servers[0].thaw()
    wait_for(lambda: every["batch_set_v1"]() == len(names), "recovery after the thaw")
    backend.close()


def test_all_servers_frozen_and_all_calls_at_once(daemons: Callable[..., Daemon], unique: str) -> None:
    """SGLang's threads call at the same time; detaching waits ten seconds for each of them."""
    server = daemons()
    pool, side = host_pools.mha("page_first"), host_pools.mamba("page_first")
    backend = attach([server], unique, pool, {PoolName.MAMBA: side})
    every = calls(backend, pool, side, keys(host_pools.PAGES))
    server.freeze()
    seen: dict[str, tuple[Any, float]] = {}
    threads = [
        threading.Thread(target=lambda name=name, call=call: seen.__setitem__(name, timed(call)))
        for name, call in every.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen.keys() == every.keys()
    for name, (answer, seconds) in seen.items():
        assert (answer, seconds < CALL_SECONDS) == (0, True), name
    _, seconds = timed(backend.close)
    assert seconds < CALL_SECONDS
    server.thaw()


def test_servers_that_do_not_answer_yet_are_a_warning(
    daemons: Callable[..., Daemon], unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = daemons()
    server.kill()
    pool = host_pools.mha("page_first")
    with caplog.at_level(logging.WARNING, "memkv_sglang"):
        backend, seconds = timed(lambda: attach([server], unique, pool))
    assert seconds < CALL_SECONDS
    assert any(server.address in record.getMessage() for record in caplog.records)
    names, place = keys(3), host_pools.slots(pool, [0, 1, 2])
    assert backend.batch_exists(names) == 0
    assert backend.batch_set_v1(names, place) == [False] * 3
    server.start()
    wait_for(lambda: all(backend.batch_set_v1(names, place)), "the server to be found")
    assert backend.batch_exists(names) == 3
    backend.close()


def test_a_forked_child_is_refused_and_harms_nobody(cluster: list[Daemon], unique: str) -> None:
    import memkv_sglang

    pool = host_pools.mha("page_first")
    backend = attach(cluster, unique, pool)
    names, place = keys(2), host_pools.slots(pool, [0, 1])
    assert all(backend.batch_set_v1(names, place))
    child = os.fork()
    if child == 0:
        status = 1
        try:
            refused = 0
            try:
                backend._client.stats()
            except memkv_sglang.ForkedError:
                refused = 1
            answers = (backend.batch_exists(names), backend.batch_get_v1(names, place))
            status = 0 if refused and answers == (0, [False, False]) else 2
            del backend
        finally:
            os._exit(status)
    deadline = time.monotonic() + CALL_SECONDS
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        assert time.monotonic() < deadline, "the child hangs"
        time.sleep(0.01)
    assert os.waitstatus_to_exitcode(status) == 0
    assert backend.batch_exists(names) == 2
    backend.close()


def test_a_full_store_refuses_politely(daemons: Callable[..., Daemon], unique: str) -> None:
    """More pages than fit: old ones make room or new ones are refused, but nothing raises and nothing is wrong."""
    import torch
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool
    from sglang.srt.mem_cache.pool_host.mha import MHATokenToKVPoolHost

    server = daemons(dram="128MiB")
    device = MHATokenToKVPool(
        size=256, page_size=64, dtype=torch.bfloat16, head_num=8, head_dim=128, layer_num=8, device="cpu",
        enable_memory_saver=False,
    )  # fmt: skip
    pool = MHATokenToKVPoolHost(
        device.get_device_pool_infos()[0].buffer_info, 1.0, 0, 64, "page_first", pin_memory=False,
        device_capacity_tokens=256, start_layer=0, end_layer=8,
    )  # fmt: skip
    backend = attach([server], unique, pool)
    page_bytes = backend._stores["kv"][0].view.page_bytes
    rounds = (256 << 20) // (4 * page_bytes) + 1
    stored = 0
    for number in range(rounds):
        host_pools.fill(pool, number)
        stored += sum(backend.batch_set_v1(keys(4, number), torch.arange(256)))
    assert stored > 0
    host_pools.fill(pool, rounds - 1)
    before = [host_pools.page_bytes(pool, page) for page in range(4)]
    host_pools.wipe(pool)
    found = backend.batch_get_v1(keys(4, rounds - 1), torch.arange(256))
    for page, flag in enumerate(found):
        if flag:
            assert host_pools.page_bytes(pool, page) == before[page]
    backend.close()
