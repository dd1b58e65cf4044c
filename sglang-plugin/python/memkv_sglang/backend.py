"""SGLang HiCache storage backend: host-pool pages into MemKV and back.

SGLang loads :class:`MemKVHiCacheStorage` through ``--hicache-storage-backend dynamic``. This file maps SGLang's
pools, keys and tensors to spaces and addresses; routing, deadlines, retries and byte movement live in the native
module.

Invariants:

- no batch method raises, and none returns ``None``: SGLang would take an exception for the end of the tier. Every
  failure is a miss or ``False``, is counted, and is logged once per incident;
- every call ends within :data:`~memkv_sglang.calls.CALL_SECONDS_MAX`, because SGLang waits ten seconds when it detaches;
- no address outlives the call that computed it: SGLang reuses a page as soon as the call returns;
- one instance serves several threads at once and owns everything it needs, so that a process can attach, detach and
  attach again.

Deliberately absent: threads, queues and process-wide state.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from sglang.srt.mem_cache.hicache_storage import (
    HiCacheStorage,
    HiCacheStorageConfig,
    HiCacheStorageExtraInfo,
)

from memkv_sglang import _native, hits, namespace, options, pools
from memkv_sglang.calls import Budget, never_raises
from memkv_sglang.health import Incidents, Meter

try:  # the hybrid interface came later than the dynamic backends
    from sglang.srt.mem_cache.hicache_storage import PoolName, PoolTransfer, PoolTransferResult
except ImportError:  # pragma: no cover
    PoolName = PoolTransfer = PoolTransferResult = None  # type: ignore[assignment,misc]

logger = logging.getLogger(__name__)

STAGING_BYTES_MAX = 64 << 20
"""How much memory a call may take for pages that have to be copied."""

ANCHOR = "kv"


@dataclass(frozen=True)
class Store:
    """Where the pages of one view live."""

    view: pools.PoolView
    space: _native.Space


class MemKVHiCacheStorage(HiCacheStorage):
    """SGLang's storage tier on MemKV.

    Raises from the constructor and from the registration methods if the configuration is wrong, the key is refused
    or a pool cannot be stored. Servers that do not answer are a warning: they join when they come back.
    """

    def __init__(self, storage_config: HiCacheStorageConfig, kwargs: Any = None) -> None:
        del kwargs  # SGLang passes an empty dict
        self.storage_config = storage_config
        self._options = options.parse(getattr(storage_config, "extra_config", None))
        self._split_factor = _split_factor(storage_config, self._options)
        self._incidents = Incidents(logger)
        self._meter = Meter()
        self._metrics_on = bool(getattr(storage_config, "enable_storage_metrics", False))
        self._lock = threading.Lock()  # guards registration only
        self._stores: dict[str, list[Store]] = {}
        self._buffers: dict[int, int] = {}
        self._copied_buffers = 0  # pool memory that no NIC reaches: its pages move with a copy, or over TCP
        self._client = _native.Client(space=None, config=self._options.config, **self._options.client)
        self._op_seconds = self._client.op_seconds
        self._warn_about_missing_servers()

    # --- life cycle -------------------------------------------------------------------------------------------

    def register_mem_pool_host(self, mem_pool_host: Any) -> None:
        """Takes the pool that holds the main KV pages."""
        self.mem_pool_host = mem_pool_host
        self._register(pools.unwrap(mem_pool_host), ANCHOR)

    def register_mem_host_pool_v2(self, host_pool: Any, host_pool_name: Any) -> None:
        """Takes a further pool, or the anchor again."""
        if not hasattr(self, "registered_pools"):
            self.registered_pools = {}
        self.registered_pools[host_pool_name] = host_pool
        self._register(pools.unwrap(host_pool), pools.pool_name(host_pool_name))

    def on_host_pools_registered(self) -> None:
        """Says in the log what will be stored where."""
        for name, stores in self._stores.items():
            for store in stores:
                view, space = store.view, store.space
                how = "logical" if view.logical else "addressed" if view.page_map else "copied"
                logger.info(
                    "memkv: pool %s: %s, %s %s, %d tokens and %d bytes per page, space %s",
                    name, how, view.layout, view.dtype, view.page_tokens, view.page_bytes, space.id,
                )  # fmt: skip

    def close(self) -> None:
        """Gives everything back. Calls that come later are misses."""
        with self._lock:
            self._stores = {}
            for ptr in self._buffers:
                self._client.unregister_buffer(ptr)
            self._buffers = {}
        self._client.close()

    def clear(self) -> None:
        """Removes what engines of this shape have stored, and nothing else."""
        try:
            for stores in self._stores.values():
                for store in stores:
                    pages, freed = store.space.clear()
                    logger.info("memkv: cleared %d pages, %d bytes of space %s", pages, freed, store.space.id)
        except Exception as error:  # the caller reports success whatever we do; say here that it was not
            logger.error("memkv: clear did not reach every server: %s", error)

    def get_stats(self) -> Any:
        """Bandwidth samples since the last call, or ``None`` if SGLang did not ask for metrics."""
        if not self._metrics_on:
            return None
        return self._meter.collect(_storage_metrics_type()())

    def stats(self) -> dict[str, Any]:
        """Counters of the client, and failed keys by method."""
        return {
            **self._client.stats(),
            "copied_buffers": self._copied_buffers,
            "failures": self._incidents.counts(),
        }

    # --- v0: flat tensors of the main KV ----------------------------------------------------------------------

    @never_raises(lambda *args, **kwargs: None)
    def get(self, key: str, target_location: Any = None, target_sizes: Any = None) -> torch.Tensor | None:
        """One page into ``target_location``; ``None`` on a miss."""
        targets = None if target_location is None else [target_location]
        return self.batch_get([key], targets)[0]

    @never_raises(lambda keys, *args, **kwargs: [None] * len(keys))
    def batch_get(
        self, keys: list[str], target_locations: Any = None, target_sizes: Any = None
    ) -> list[torch.Tensor | None]:
        """One tensor per key; ``None`` in the places of misses."""
        store = self._anchor()
        if store is None or not keys:
            return [None] * len(keys)
        targets = list(target_locations) if target_locations is not None else [None] * len(keys)
        if store.view.logical:
            return targets
        targets = [_new_page(store.view) if target is None else target for target in targets]
        if len(targets) != len(keys) or not all(_is_page(target, store.view) for target in targets):
            self._incidents.failed("batch_get", len(keys), f"targets are not pages of {store.view.page_bytes} bytes")
            return [None] * len(keys)
        flags = self._read_tensors("batch_get", store, keys, targets, Budget(self._op_seconds))
        return [target if flag else None for target, flag in zip(targets, flags, strict=True)]

    @never_raises(lambda *args, **kwargs: False)
    def set(self, key: str, value: Any = None, target_location: Any = None, target_sizes: Any = None) -> bool:
        """Stores one page; a page that is there already is a success."""
        return self.batch_set([key], [value])

    @never_raises(lambda *args, **kwargs: False)
    def batch_set(
        self, keys: list[str], values: Any = None, target_locations: Any = None, target_sizes: Any = None
    ) -> bool:
        """Stores one tensor per key; ``True`` only if all of them are stored."""
        store = self._anchor()
        if store is None:
            return False
        if store.view.logical or not keys:
            return True
        pages = [value.contiguous().cpu() for value in values]
        if len(pages) != len(keys) or not all(_is_page(page, store.view) for page in pages):
            self._incidents.failed("batch_set", len(keys), f"values are not pages of {store.view.page_bytes} bytes")
            return False
        return all(self._write_tensors("batch_set", store, keys, pages, Budget(self._op_seconds)))

    @never_raises(lambda *args, **kwargs: False)
    def exists(self, key: str) -> bool:
        """Whether the page is stored."""
        return self.batch_exists([key]) == 1

    @never_raises(lambda *args, **kwargs: 0)
    def batch_exists(self, keys: list[str], extra_info: HiCacheStorageExtraInfo | None = None) -> int:
        """How many pages from the first on are stored without a gap."""
        stores = self._stores.get(ANCHOR)
        if not stores or not keys:
            return 0
        return hits.leading_run(self._present("batch_exists", stores, keys, Budget(self._op_seconds)))

    # --- v1: addresses of the main KV -------------------------------------------------------------------------

    @never_raises(lambda keys, *args, **kwargs: [False] * len(keys))
    def batch_get_v1(
        self, keys: list[str], host_indices: torch.Tensor, extra_info: HiCacheStorageExtraInfo | None = None
    ) -> list[bool]:
        """Reads pages straight into the host pool."""
        return self._read("batch_get_v1", ANCHOR, keys, host_indices, Budget(self._op_seconds))

    @never_raises(lambda keys, *args, **kwargs: [False] * len(keys))
    def batch_set_v1(
        self, keys: list[str], host_indices: torch.Tensor, extra_info: HiCacheStorageExtraInfo | None = None
    ) -> list[bool]:
        """Writes pages straight from the host pool."""
        position = _first_position(extra_info)
        return self._write("batch_set_v1", ANCHOR, keys, host_indices, Budget(self._op_seconds), position)

    # --- v2: all other pools ----------------------------------------------------------------------------------

    @never_raises(lambda *args, **kwargs: PoolTransferResult.empty())
    def batch_exists_v2(
        self,
        keys: list[str],
        pool_transfers: list[PoolTransfer] | None = None,
        extra_info: HiCacheStorageExtraInfo | None = None,
    ) -> PoolTransferResult:
        """The longest prefix that every pool can restore, each pool's own, and all lengths that work."""
        budget = Budget(self._op_seconds)
        stores = self._stores.get(ANCHOR)
        if not stores or not keys:
            return _hit_result(0, {}, [])
        if stores[0].view.logical:
            kv_pages = len(keys)
        else:
            kv_pages = hits.leading_run(self._present("batch_exists_v2", stores, keys, budget))
        found = {PoolName.KV: kv_pages} if kv_pages else {}
        restorable = list(range(1, kv_pages + 1))
        for transfer in pool_transfers or [] if kv_pages else []:
            accepted = self._accepted(transfer, keys[:kv_pages], budget)
            if accepted is None:
                continue
            if accepted:
                found[transfer.name] = accepted[-1]
            restorable = hits.intersect(restorable, accepted)
        return _hit_result(restorable[-1] if restorable else 0, found, restorable)

    @never_raises(lambda transfers, *args, **kwargs: _all_false(transfers))
    def batch_get_v2(
        self, transfers: list[PoolTransfer], extra_info: HiCacheStorageExtraInfo | None = None
    ) -> dict[str, list[bool]]:
        """Reads pages of several pools; one list of flags per pool."""
        return self._for_each_pool("batch_get_v2", self._read, transfers, 0)

    @never_raises(lambda transfers, *args, **kwargs: _all_false(transfers))
    def batch_set_v2(
        self, transfers: list[PoolTransfer], extra_info: HiCacheStorageExtraInfo | None = None
    ) -> dict[str, list[bool]]:
        """Writes pages of several pools; one list of flags per pool."""
        return self._for_each_pool("batch_set_v2", self._write, transfers, _first_position(extra_info))

    # --- registration -----------------------------------------------------------------------------------------

    def _register(self, pool: Any, name: str) -> None:
        with self._lock:
            known = self._stores.get(name)
            if known and known[0].view.pool is pool:
                return
            self._stores = {**self._stores, name: [self._open(view) for view in self._views(pool, name)]}
            for tensor in pools.buffers(pool):
                self._register_buffer(tensor)

    def _views(self, pool: Any, name: str) -> list[pools.PoolView]:
        if self._split_factor > 1 and getattr(pool, "layout", None) == "page_head":
            tp_rank = int(getattr(self.storage_config, "tp_rank", 0))
            return pools.view_split_pool(pool, name, self._split_factor, tp_rank)
        as_tensors = name == ANCHOR and not self._options.interface_v1
        return [pools.view_pool(pool, name, as_tensors=as_tensors)]

    def _open(self, view: pools.PoolView) -> Store:
        return Store(view, self._client.space(namespace.space_fields(self.storage_config, self._options, view)))

    def _register_buffer(self, tensor: torch.Tensor) -> None:
        """Announces a pool's memory once. Where no NIC takes it, its pages are copied."""
        if tensor.device.type != "cpu" or not tensor.is_contiguous():
            self._copied_buffers += 1
            return
        ptr, size = tensor.data_ptr(), tensor.numel() * tensor.element_size()
        if self._buffers.get(ptr) != size:
            if not self._client.register_buffer(ptr, size):
                self._copied_buffers += 1
            self._buffers[ptr] = size

    def _anchor(self) -> Store | None:
        stores = self._stores.get(ANCHOR)
        return stores[0] if stores and len(stores) == 1 else None

    def _warn_about_missing_servers(self) -> None:
        servers = self._client.servers()
        missing = [server for server in servers if server["state"] != "ready"]
        if not servers:
            logger.warning("memkv: no servers are known yet; every page is a miss until MEMKV_DISCOVERY names some")
        if missing:
            names = ", ".join(f"{server['address']} ({server['state']})" for server in missing)
            logger.warning("memkv: not reachable yet: %s; their pages are misses until they answer", names)

    # --- moving pages -----------------------------------------------------------------------------------------

    def _for_each_pool(
        self, operation: str, move: Callable[..., list[bool]], transfers: list[PoolTransfer], position: int
    ) -> dict[str, list[bool]]:
        budget = Budget(self._op_seconds)
        moved = {}
        for transfer in transfers:
            # A transfer of trailing pages begins somewhere in the chain, and nobody says where.
            whole = pools.pool_name(getattr(transfer, "hit_policy", "all_pages")) == "all_pages"
            name, keys = pools.pool_name(transfer.name), transfer.keys or []
            begin = position if whole else 0
            moved[transfer.name] = move(operation, name, keys, transfer.host_indices, budget, begin)
        return moved

    def _read(
        self, operation: str, name: str, keys: list[str], indices: torch.Tensor | None, budget: Budget, _: int = 0
    ) -> list[bool]:
        stores = self._stores_for(operation, name, keys, indices)
        if stores is None:
            return [False] * len(keys)
        return self._in_every(stores, keys, lambda store: self._read_pages(operation, store, keys, indices, budget))

    def _write(
        self, operation: str, name: str, keys: list[str], indices: torch.Tensor | None, budget: Budget, position: int
    ) -> list[bool]:
        stores = self._stores_for(operation, name, keys, indices)
        if stores is None:
            return [False] * len(keys)
        return self._in_every(stores, keys, lambda store: self._write_pages(operation, store, keys, indices, budget, position))

    def _stores_for(
        self, operation: str, name: str, keys: list[str], indices: torch.Tensor | None
    ) -> list[Store] | None:
        """Where the pool's pages live; ``None`` if the pool is unknown or the indices do not fit the keys."""
        stores = self._stores.get(name)
        if not stores:
            self._incidents.failed(operation, len(keys), f"the pool {name!r} is not registered")
            return None
        if stores[0].view.logical:
            return stores
        expected = len(keys) * stores[0].view.page_tokens
        if indices is None or indices.numel() != expected:
            got = 0 if indices is None else indices.numel()
            self._incidents.failed(operation, len(keys), f"{got} host indices for pool {name!r}, expected {expected}")
            return None
        return stores

    @staticmethod
    def _in_every(stores: list[Store], keys: list[str], move: Callable[[Store], list[bool]]) -> list[bool]:
        """A page is moved if it is moved in every one of the stores (slices of heads)."""
        if not keys or stores[0].view.logical:
            return [True] * len(keys)
        flags = move(stores[0])
        for store in stores[1:]:
            flags = [a and b for a, b in zip(flags, move(store), strict=True)]
        return flags

    def _read_pages(
        self, operation: str, store: Store, keys: list[str], indices: torch.Tensor, budget: Budget
    ) -> list[bool]:
        view = store.view
        if view.page_map is None:
            return self._read_copied(operation, store, keys, indices, budget)
        slots = pools.first_slots(indices, view.page_tokens)
        start = time.perf_counter()
        result = store.space.get_pages(keys, view.page_map, slots, budget.left())
        self._note_read(operation, result, start)
        return result.flags

    def _write_pages(
        self, operation: str, store: Store, keys: list[str], indices: torch.Tensor, budget: Budget, position: int
    ) -> list[bool]:
        view = store.view
        if view.page_map is None:
            return self._write_copied(operation, store, keys, indices, budget, position)
        slots = pools.first_slots(indices, view.page_tokens)
        start = time.perf_counter()
        result = store.space.put_pages(keys, view.page_map, slots, budget.left(), position)
        self._note_written(operation, result, start)
        return result.flags

    def _read_copied(
        self, operation: str, store: Store, keys: list[str], indices: torch.Tensor, budget: Budget
    ) -> list[bool]:
        view = store.view
        flags: list[bool] = []
        slots = indices[:: view.page_tokens].tolist()
        step = max(1, STAGING_BYTES_MAX // view.page_bytes)
        for at in range(0, len(keys), step):
            staging = [_new_page(view) for _ in keys[at : at + step]]
            batch = self._read_tensors(operation, store, keys[at : at + step], staging, budget)
            for slot, page, flag in zip(slots[at : at + step], staging, batch, strict=True):
                if flag:
                    view.pool.set_from_flat_data_page(slot, page)
            flags += batch
            if not all(batch) or not budget.allows_another():
                break
        return flags + [False] * (len(keys) - len(flags))

    def _write_copied(
        self, operation: str, store: Store, keys: list[str], indices: torch.Tensor, budget: Budget, position: int
    ) -> list[bool]:
        view = store.view
        flags: list[bool] = []
        slots = indices[:: view.page_tokens].tolist()
        step = max(1, STAGING_BYTES_MAX // view.page_bytes)
        for at in range(0, len(keys), step):
            pages = [view.pool.get_data_page(slot, flat=True).contiguous() for slot in slots[at : at + step]]
            begin = position + at if position else 0
            batch = self._write_tensors(operation, store, keys[at : at + step], pages, budget, begin)
            flags += batch
            if not all(batch) or not budget.allows_another():
                break
        return flags + [False] * (len(keys) - len(flags))

    def _read_tensors(
        self, operation: str, store: Store, keys: list[str], pages: list[torch.Tensor], budget: Budget
    ) -> list[bool]:
        start = time.perf_counter()
        result = store.space.get_into(keys, [p.data_ptr() for p in pages], [p.nbytes for p in pages], budget.left())
        self._note_read(operation, result, start)
        return result.flags

    def _write_tensors(
        self,
        operation: str,
        store: Store,
        keys: list[str],
        pages: list[torch.Tensor],
        budget: Budget,
        position: int = 0,
    ) -> list[bool]:
        start = time.perf_counter()
        ptrs, sizes = [p.data_ptr() for p in pages], [p.nbytes for p in pages]
        result = store.space.put_from(keys, ptrs, sizes, budget.left(), position)
        self._note_written(operation, result, start)
        return result.flags

    def _present(self, operation: str, stores: list[Store], keys: list[str], budget: Budget) -> list[bool]:
        flags: list[bool] | None = None
        for store in stores:
            if store.view.logical:
                return [True] * len(keys)
            if not budget.allows_another():
                self._incidents.failed(operation, len(keys), "no time left for another question")
                return [False] * len(keys)
            result = store.space.exists(keys)
            self._note(operation, result)
            flags = result.flags if flags is None else [a and b for a, b in zip(flags, result.flags, strict=True)]
        return flags or [False] * len(keys)

    def _accepted(self, transfer: PoolTransfer, keys: Sequence[str], budget: Budget) -> list[int] | None:
        """Prefix lengths that one pool can restore; ``None`` if the pool has no say in it."""
        policy = pools.pool_name(getattr(transfer, "hit_policy", "all_pages"))
        if policy == "block_groups":  # a second form of the main pages; by definition it never limits a hit
            return None
        name = pools.pool_name(transfer.name)
        stores = self._stores.get(name)
        if not stores or policy not in ("all_pages", "trailing_pages"):
            what = f"the hit policy {policy!r} is unknown" if stores else f"the pool {name!r} is not registered"
            self._incidents.failed("batch_exists_v2", len(keys), what)
            return []
        present = self._present("batch_exists_v2", stores, list(keys), budget)
        if policy == "all_pages":
            return hits.all_pages(present)
        return hits.trailing_pages(present, max(1, len(transfer.keys or ())))

    # --- bookkeeping ------------------------------------------------------------------------------------------

    def _note(self, operation: str, result: _native.BatchResult) -> None:
        if result.failed:
            self._incidents.failed(operation, result.failed, result.reason)
        else:
            self._incidents.succeeded(operation)

    def _note_read(self, operation: str, result: _native.BatchResult, start: float) -> None:
        self._note(operation, result)
        if self._metrics_on:
            self._meter.read(result.moved_pages, result.moved_bytes, time.perf_counter() - start)

    def _note_written(self, operation: str, result: _native.BatchResult, start: float) -> None:
        self._note(operation, result)
        if self._metrics_on:
            self._meter.wrote(result.moved_pages, result.moved_bytes, time.perf_counter() - start)


def _first_position(extra_info: HiCacheStorageExtraInfo | None) -> int:
    """The place of a call's first page in its chain, from 1; 0 if SGLang does not say.

    SGLang names the pages before it only if ``hicache_storage_pass_prefix_keys`` is set.
    """
    before = getattr(extra_info, "prefix_keys", None)
    return 0 if before is None else len(before) + 1


def _split_factor(config: Any, parsed: options.Options) -> int:
    """Into how many slices the heads are divided, for engines of different tensor-parallel size."""
    if not getattr(config, "should_split_heads", False):
        return 1
    tp_size, lcm = int(getattr(config, "tp_size", 1)), int(getattr(config, "tp_lcm_size", 0) or 0)
    if not parsed.interface_v1:
        raise ValueError('memkv: tp_lcm_size needs "interface_v1": 1 in the storage backend extra config')
    if lcm < tp_size or lcm % tp_size:
        raise ValueError(f"memkv: tp_lcm_size is {lcm}; it must be a multiple of the tensor-parallel size {tp_size}")
    return lcm // tp_size


def _hit_result(kv_hit_pages: int, found: dict[Any, int], restorable: list[int]) -> PoolTransferResult:
    result = {"kv_hit_pages": kv_hit_pages, "extra_pool_hit_pages": found, "restorable_prefix_pages": restorable}
    known = {field.name for field in fields(PoolTransferResult)}
    return PoolTransferResult(**{name: value for name, value in result.items() if name in known})


def _all_false(transfers: list[PoolTransfer]) -> dict[str, list[bool]]:
    return {transfer.name: [False] * len(transfer.keys or []) for transfer in transfers}


def _is_page(tensor: torch.Tensor, view: pools.PoolView) -> bool:
    """Whether the tensor's memory is exactly one page."""
    return tensor.device.type == "cpu" and tensor.is_contiguous() and tensor.nbytes == view.page_bytes


def _new_page(view: pools.PoolView) -> torch.Tensor:
    elements = view.page_bytes // view.flat_dtype.itemsize
    return torch.empty(elements, dtype=view.flat_dtype)


@functools.cache
def _storage_metrics_type() -> Any:
    try:
        from sglang.srt.observability.metrics_collector import StorageMetrics
    except ImportError:
        from sglang.srt.metrics.collector import StorageMetrics
    return StorageMetrics
