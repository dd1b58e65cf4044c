"""Backends made as SGLang makes them."""

from __future__ import annotations

from typing import Any

from sglang.srt.mem_cache.hicache_storage import HiCacheStorageConfig
from sglang.srt.mem_cache.storage import StorageBackendFactory

from conftest import AUTH_KEY, Daemon, addresses

DYNAMIC = {"backend_name": "memkv", "module_path": "memkv_sglang.backend", "class_name": "MemKVHiCacheStorage"}


def settings(servers: list[Daemon], **extra: Any) -> dict[str, Any]:
    """An extra config that reaches the given servers."""
    return {**DYNAMIC, "memkv_servers": addresses(servers), "memkv_auth_key": AUTH_KEY, "interface_v1": 1, **extra}


def storage_config(model: str | None, extra: dict[str, Any], **fields: Any) -> HiCacheStorageConfig:
    """SGLang's storage config for one rank."""
    values: dict[str, Any] = {
        "tp_rank": 0,
        "tp_size": 1,
        "pp_rank": 0,
        "pp_size": 1,
        "attn_cp_rank": 0,
        "attn_cp_size": 1,
        "is_mla_model": False,
        "enable_storage_metrics": False,
        "is_page_first_layout": True,
        "model_name": model,
        "extra_config": extra,
    }
    return HiCacheStorageConfig(**{**values, **fields})


def attach(
    servers: list[Daemon],
    model: str | None,
    anchor: Any = None,
    pools: dict[str, Any] | None = None,
    extra: dict[str, Any] | None = None,
    **fields: Any,
) -> Any:
    """A backend from SGLang's factory, with its pools registered in SGLang's order."""
    config = storage_config(model, settings(servers, **(extra or {})), **fields)
    backend = StorageBackendFactory.create_backend("dynamic", config, anchor)
    if anchor is not None:
        backend.register_mem_pool_host(anchor)
        backend.register_mem_host_pool_v2(anchor, "kv")
    for name, pool in (pools or {}).items():
        backend.register_mem_host_pool_v2(pool, name)
    backend.on_host_pools_registered()
    return backend


def keys(count: int, seed: int = 0) -> list[str]:
    """Page hashes as SGLang makes them: 64 hex digits."""
    import hashlib

    return [hashlib.sha256(f"{seed}/{index}".encode()).hexdigest() for index in range(count)]
