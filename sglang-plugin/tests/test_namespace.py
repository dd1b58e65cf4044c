"""Two engines meet in one space only if their pages are interchangeable."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from memkv_sglang import namespace, options, pools
from sglang.srt.mem_cache.hicache_storage import PoolTransfer

import host_pools
from conftest import Daemon
from rig import attach, keys, storage_config


def identity(pool: Any, name: str = "kv", extra: dict[str, Any] | None = None, **fields: Any) -> dict[str, str]:
    model = fields.pop("model", "meta/model")
    config = storage_config(model, {"interface_v1": 1, **(extra or {})}, **fields)
    return namespace.space_fields(config, options.parse(config.extra_config), pools.view_pool(pool, name))


@pytest.mark.unit
def test_everything_that_decides_the_bytes_keeps_spaces_apart() -> None:
    pool = host_pools.mha("page_first")
    identities = [
        identity(pool),
        identity(pool, "draft"),
        identity(pool, model="meta/other"),
        identity(pool, model=None),
        identity(pool, extra={"memkv_tag": "blue"}),
        identity(pool, extra={"memkv_revision": "r2"}),
        identity(pool, tp_rank=1, tp_size=2),
        identity(pool, tp_rank=0, tp_size=2),
        identity(pool, pp_rank=1, pp_size=2),
        identity(pool, attn_cp_rank=1, attn_cp_size=2),
        *(identity(case.make(), case.pool_name) for case in host_pools.CASES if case.id != "mha-page_first-bf16"),
    ]
    for one, other in itertools.combinations(identities, 2):
        assert one != other


@pytest.mark.unit
def test_replicas_share() -> None:
    pool = host_pools.mha("page_first")
    assert identity(pool, dp_rank=0) == identity(pool, dp_rank=3)
    assert identity(pool) == identity(host_pools.mha("page_first"))


@pytest.mark.unit
def test_latent_attention_is_shared_over_tensor_parallel_ranks_but_states_and_heads_are_not() -> None:
    ranks = [{"tp_rank": rank, "tp_size": 4, "is_mla_model": True} for rank in range(2)]
    latent = host_pools.mla("page_first")
    assert identity(latent, **ranks[0]) == identity(latent, **ranks[1])
    assert identity(latent, **ranks[0]) == identity(latent, tp_size=8, is_mla_model=True)
    indexer = host_pools.dsa_indexer("page_first")
    assert identity(indexer, "indexer", **ranks[0]) == identity(indexer, "indexer", **ranks[1])
    for name, pool in (("mamba", host_pools.mamba("page_first")), ("draft", host_pools.mha("page_first"))):
        assert identity(pool, name, **ranks[0]) != identity(pool, name, **ranks[1])


@pytest.mark.unit
def test_formats_that_look_alike_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """SGLang stores both fp8 formats as uint8; only the engine's settings tell them apart."""
    pool = host_pools.mha("page_first", torch.float8_e4m3fn)
    seen = []
    for name in ("fp8_e4m3", "fp8_e5m2", None):
        monkeypatch.setattr(namespace, "engine_kv_dtype", lambda name=name: name)
        seen.append(identity(pool))
    assert seen[0] != seen[1] != seen[2] != seen[0]


@pytest.mark.unit
def test_a_config_of_an_older_release_is_enough() -> None:
    """Only the fields that SGLang 0.5.0 had."""

    class OldConfig:
        tp_rank = 1
        tp_size = 2
        is_mla_model = False
        is_page_first_layout = True
        model_name = "m"
        extra_config = None

    view = pools.view_pool(host_pools.mha("page_first"), "kv")
    fields = namespace.space_fields(OldConfig(), options.parse(None), view)
    assert fields == identity(host_pools.mha("page_first"), model="m", tp_rank=1, tp_size=2)


@pytest.mark.server
def test_same_keys_of_different_engines_do_not_meet(cluster: list[Daemon], unique: str) -> None:
    """All pools write the same keys; each reads back its own bytes."""
    names = keys(4)
    pages = [0, 3, 6, 9]
    made = []
    for seed, case in enumerate(host_pools.CASES):
        pool = case.make()
        host_pools.fill(pool, seed)
        backend = attach(cluster, unique, host_pools.logical(), {case.pool_name: pool})
        moves = [PoolTransfer(name=case.pool_name, host_indices=host_pools.slots(pool, pages), keys=names)]
        assert all(backend.batch_set_v2(moves)[case.pool_name]), case.id
        made.append((case, pool, backend, moves, [host_pools.page_bytes(pool, page) for page in pages]))
    for case, pool, backend, moves, before in made:
        host_pools.wipe(pool)
        assert all(backend.batch_get_v2(moves)[case.pool_name]), case.id
        assert [host_pools.page_bytes(pool, page) for page in pages] == before, case.id
        backend.close()
