"""SGLang's own cache stack on a machine without a GPU.

This starts what a scheduler process of SGLang starts for its cache: device pool, host pool, controller with its threads
and unified radix cache, configured through SGLang's own arguments. Only two things differ from a GPU:

- host memory is not pinned, and SGLang does not hold back its 10 GiB of RAM;
- the copies between device and host pool, which are CUDA kernels, are done by torch.

SGLang compiles its page hash at first use, which needs ninja and the headers of OpenSSL. Where they are missing, the
same hash is computed by Python's hashlib.

Instead of a model, deterministic bytes stand for the KV of a page, so that another process can tell what must come
back.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import tempfile
import time
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sglang.srt import runtime_context
from sglang.srt.mem_cache import utils as cache_utils
from sglang.srt.mem_cache.allocator.paged import PagedTokenToKVPoolAllocator
from sglang.srt.mem_cache.base_prefix_cache import (
    CacheRequestHandle,
    InsertParams,
    MatchPrefixParams,
)
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.cpp_utils import native_hash
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, MLATokenToKVPool, ReqToTokenPool
from sglang.srt.mem_cache.pool_host import base as host_base
from sglang.srt.mem_cache.pool_host import common as host_common
from sglang.srt.mem_cache.pool_host.mha import MHATokenToKVPoolHost
from sglang.srt.mem_cache.pool_host.mla import MLATokenToKVPoolHost
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache
from sglang.srt.server_args import ServerArgs

logger = logging.getLogger(__name__)

BACKEND = {
    "backend_name": "memkv",
    "module_path": "memkv_sglang.backend",
    "class_name": "MemKVHiCacheStorage",
}


@dataclass(frozen=True)
class Shape:
    """The part of a model that decides what its KV looks like."""

    kind: str = "mha"
    layers: int = 4
    heads: int = 2
    head_dim: int = 32
    page_tokens: int = 16
    dtype: torch.dtype = torch.bfloat16
    layout: str = "page_first"

    @property
    def token_bytes(self) -> int:
        """Bytes of one token over all layers."""
        halves = 2 if self.kind == "mha" else 1
        return halves * self.layers * self.heads * self.head_dim * self.dtype.itemsize

    @property
    def page_bytes(self) -> int:
        """Bytes of one page over all layers."""
        return self.token_bytes * self.page_tokens


def page_content(shape: Shape, tokens: list[int], page: int) -> torch.Tensor:
    """The bytes that stand for the KV of one page; like real KV they depend on the whole prefix.

    A ``uint8`` tensor ``[layers, halves, page_tokens, bytes per token, layer and half]``.
    """
    prefix = np.asarray(tokens[: (page + 1) * shape.page_tokens], dtype=np.int64).tobytes()
    seed = int.from_bytes(hashlib.sha256(prefix).digest()[:8], "little")
    words = np.random.default_rng(seed).integers(0, 2**64, size=-(-shape.page_bytes // 8), dtype=np.uint64)
    data = words.view(np.uint8)[: shape.page_bytes]
    halves = 2 if shape.kind == "mha" else 1
    width = shape.heads * shape.head_dim * shape.dtype.itemsize
    return torch.from_numpy(data).reshape(shape.layers, halves, shape.page_tokens, width)


def prompt(count: int, seed: int = 0) -> list[int]:
    """A prompt of ``count`` tokens; equal seeds give equal prompts in every process."""
    return np.random.default_rng(seed).integers(0, 32_000, size=count).tolist()


class CpuEngine:
    """One scheduler's cache stack."""

    def __init__(
        self,
        shape: Shape,
        *,
        pages: int,
        extra_config: dict[str, Any] | None = None,
        model_name: str = "memkv/demo",
        storage: str | None = "dynamic",
    ) -> None:
        run_without_gpu()
        self.shape = shape
        self.model_name = model_name
        tokens = pages * shape.page_tokens
        args = _server_args(shape, model_name, storage, {**BACKEND, **(extra_config or {})})
        _publish(args)
        self.device_pool = _device_pool(shape, tokens)
        allocator = PagedTokenToKVPoolAllocator(
            tokens, shape.page_tokens, shape.dtype, "cpu", self.device_pool, need_sort=False
        )
        params = CacheInitParams(
            disable=False,
            req_to_token_pool=ReqToTokenPool(size=8, max_context_len=tokens, device="cpu", enable_memory_saver=False),
            token_to_kv_pool_allocator=allocator,
            page_size=shape.page_tokens,
            tree_components=(ComponentType.FULL,),
        )
        self.allocator = allocator
        self.cache = UnifiedRadixCache(params)
        self.cache.init_hicache(args, params)
        self.requests = 0

    @property
    def controller(self) -> Any:
        """SGLang's cache controller."""
        return self.cache.cache_controller

    @property
    def backend(self) -> Any:
        """The storage backend, as SGLang holds it."""
        return self.controller.storage_backend

    def compute(self, tokens: list[int]) -> None:
        """Stands for a prefill: fills device pages and inserts them, which starts their backup."""
        size = self.shape.page_tokens
        match = self.cache.match_prefix(MatchPrefixParams(key=self._key(tokens)))
        known = self.cache.path_device_indices(match.last_device_node)[: match.device_prefix_len]
        fresh = self.allocator.alloc(len(tokens) - len(known))
        assert fresh is not None, "the device pool is full"
        slots = torch.cat([known, fresh])
        for page in range(len(known) // size, len(tokens) // size):
            content = page_content(self.shape, tokens, page)
            rows = slots[page * size : (page + 1) * size]
            for layer, halves in enumerate(self._device_layers()):
                for half, buffer in enumerate(halves):
                    _bytes(buffer)[rows] = content[layer, half]
        # Without the length of the known part the tree would free its own slots as duplicates.
        self.cache.insert(InsertParams(key=self._key(tokens), value=slots, prev_prefix_len=len(known)))
        self.cache.flush_pending_backups()

    def wait_for_backups(self, seconds: float = 60.0) -> None:
        """Runs scheduler steps until host and storage hold what was inserted."""
        cache = self.cache

        def done() -> bool:
            return not (cache.ongoing_write_through or cache.ongoing_backup or self.controller.ack_write_queue)

        _until(done, cache.check_hicache_events, seconds, "the backup")

    def prefetch(self, tokens: list[int], seconds: float = 60.0) -> int:
        """Asks storage for the part of a prompt that is not in memory; returns how many tokens the host holds then."""
        self.requests += 1
        request = CacheRequestHandle(f"request-{self.requests}", 0)
        match = self.cache.match_prefix(MatchPrefixParams(key=self._key(tokens)))
        have = match.device_prefix_len + match.host_hit_length
        node = match.last_host_node
        self.cache.prefetch_from_storage(
            request,
            node,
            array("q", tokens[have:]),
            last_hash=None if self.cache.is_root(node) else self.cache.get_last_hash_value(node),
            matched_prefix_tokens=array("q", tokens[:have]),
        )
        _until(
            lambda: self.cache.check_prefetch_progress(request),
            self.cache.check_hicache_events,
            seconds,
            "the prefetch",
        )
        self.cache.check_hicache_events()
        match = self.cache.match_prefix(MatchPrefixParams(key=self._key(tokens)))
        return match.device_prefix_len + match.host_hit_length

    def load(self, tokens: list[int]) -> torch.Tensor:
        """Brings the host's part of a prompt to the device; returns the device slots of the prompt's prefix."""
        match = self.cache.match_prefix(MatchPrefixParams(key=self._key(tokens)))
        if match.host_hit_length:
            self.cache.load_back(match.best_match_node)
        self.cache.ready_to_load_host_cache()
        self.cache.check_hicache_events()
        match = self.cache.match_prefix(MatchPrefixParams(key=self._key(tokens)))
        return self.cache.path_device_indices(match.last_device_node)[: match.device_prefix_len]

    def wrong_bytes(self, tokens: list[int], slots: torch.Tensor) -> int:
        """Compares every byte of the pages in the given device slots with what was computed."""
        size = self.shape.page_tokens
        wrong = 0
        for page in range(len(slots) // size):
            content = page_content(self.shape, tokens, page)
            rows = slots[page * size : (page + 1) * size]
            for layer, halves in enumerate(self._device_layers()):
                for half, buffer in enumerate(halves):
                    wrong += int((_bytes(buffer)[rows] != content[layer, half]).sum())
        return wrong

    def close(self) -> None:
        """Detaches the storage and stops the threads."""
        self.cache.shutdown()

    def _key(self, tokens: list[int]) -> RadixKey:
        return RadixKey(array("q", tokens))

    def _device_layers(self) -> list[tuple[torch.Tensor, ...]]:
        if self.shape.kind == "mla":
            return [(buffer,) for buffer in self.device_pool.kv_buffer]
        return list(zip(self.device_pool.k_buffer, self.device_pool.v_buffer, strict=True))


def _until(done: Any, step: Any, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        step()
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not finish within {seconds} s")
        time.sleep(0.001)


def _bytes(buffer: torch.Tensor) -> torch.Tensor:
    """A device buffer as ``uint8 [slots, bytes]``."""
    return buffer.view(torch.uint8).reshape(buffer.shape[0], -1)


def _device_pool(shape: Shape, tokens: int) -> Any:
    common = {
        "size": tokens,
        "page_size": shape.page_tokens,
        "dtype": shape.dtype,
        "layer_num": shape.layers,
        "device": "cpu",
        "enable_memory_saver": False,
    }
    if shape.kind == "mla":
        rope = shape.head_dim // 4
        return MLATokenToKVPool(
            **common, kv_lora_rank=shape.heads * shape.head_dim - rope, qk_rope_head_dim=rope
        )
    return MHATokenToKVPool(**common, head_num=shape.heads, head_dim=shape.head_dim)


def _server_args(shape: Shape, model_name: str, storage: str | None, extra_config: dict[str, Any]) -> ServerArgs:
    with tempfile.TemporaryDirectory() as directory:
        config = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "vocab_size": 32_000,
            "max_position_embeddings": 1 << 20,
            "torch_dtype": "bfloat16",
        }
        Path(directory, "config.json").write_text(json.dumps(config))
        args = ServerArgs(
            model_path=directory,
            device="cpu",
            page_size=shape.page_tokens,
            served_model_name=model_name,
            enable_hierarchical_cache=True,
            hicache_ratio=2.0,
            hicache_mem_layout=shape.layout,
            hicache_io_backend="direct" if shape.layout == "page_first_direct" else "kernel",
            hicache_write_policy="write_through",
            hicache_storage_prefetch_policy="wait_complete",
            hicache_storage_backend=storage,
            hicache_storage_backend_extra_config=json.dumps({"prefetch_threshold": shape.page_tokens, **extra_config}),
        )
        args.resolve_once()
    return args


def _publish(args: ServerArgs) -> None:
    runtime_context.publish(args, role="scheduler")
    runtime_context.get_parallel().override_permanently(tp_rank=0, pp_rank=0, attn_tp_rank=0, attn_dp_rank=0)


def run_without_gpu() -> None:
    """Takes CUDA out of SGLang's host pools, and the compiler where there is none."""
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    try:
        native_hash.get_native_hash(array("q", [1]), None, 1)
    except RuntimeError as error:
        logger.warning("SGLang's page hash cannot be compiled here (%s); Python computes it", error)
        cache_utils.get_native_hash = page_hashes
    host_base.HICACHE_HOST_MEMORY_RESERVE_BYTES = 0
    host_common.ALLOC_MEMORY_FUNCS["cpu"] = _allocate_unpinned
    host_base.HostKVCache.pin_memory = property(lambda pool: False, lambda pool, value: None)
    for pool in (MHATokenToKVPoolHost, MLATokenToKVPoolHost):
        pool.backup_from_device_all_layer = _copy_to_host
        pool.load_to_device_per_layer = _copy_to_device


def page_hashes(tokens: Any, prior: bytes | None, page_size: int | None = None) -> str | list[str]:
    """The page hash chain: SHA-256 over the previous hash and the page's tokens as 32-bit little-endian words."""
    raw = getattr(tokens, "raw_token_ids", lambda: tokens)()
    words = np.asarray(raw[: len(tokens)], dtype="<u4")
    if page_size is None:
        return hashlib.sha256((prior or b"") + words.tobytes()).hexdigest()
    digests = []
    for start in range(0, len(words) - page_size + 1, page_size):
        prior = hashlib.sha256((prior or b"") + words[start : start + page_size].tobytes()).digest()
        digests.append(prior.hex())
    return digests


def _allocate_unpinned(
    dims: tuple, dtype: Any, device: str, pin_memory: bool, allocator: Any, registration_granularity_bytes: Any = None
) -> torch.Tensor:
    return allocator.allocate(dims, dtype=dtype, device=device)


def _copy_to_host(host: Any, device_pool: Any, host_indices: Any, device_indices: Any, io_backend: str) -> None:
    for layer in range(host.layer_num):
        for host_rows, device_rows in _layer_views(host, device_pool, layer):
            host_rows[_place(host, host_indices)] = device_rows[device_indices]


def _copy_to_device(
    host: Any,
    device_pool: Any,
    host_indices: Any,
    device_indices: Any,
    layer_id: int,
    io_backend: str,
    *,
    is_draft: bool = False,
) -> None:
    for host_rows, device_rows in _layer_views(host, device_pool, layer_id):
        device_rows[device_indices] = host_rows[_place(host, host_indices)]


def _layer_views(host: Any, device_pool: Any, layer: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Views of one layer, host and device: ``[token, head, dim]``; some hosts have ``[page, token, head, dim]``."""
    if isinstance(host, MLATokenToKVPoolHost):
        pairs = [(host.kv_buffer, device_pool.kv_buffer[layer])]
    else:
        pairs = [(host.kv_buffer[0], device_pool.k_buffer[layer]), (host.kv_buffer[1], device_pool.v_buffer[layer])]
    return [(_layer_of(host, buffer, layer), device) for buffer, device in pairs]


def _layer_of(host: Any, buffer: torch.Tensor, layer: int) -> torch.Tensor:
    if host.layout == "layer_first":
        return buffer[layer]
    if host.layout in ("page_first", "page_first_direct"):
        return buffer[:, layer]
    if host.layout == "page_head":  # [page, head, token in page, layer, dim]
        return buffer[:, :, :, layer].transpose(1, 2)
    raise ValueError(f"no copy for layout {host.layout}")


def _place(host: Any, indices: torch.Tensor) -> Any:
    """How a layer's host view is indexed by token slots."""
    if host.layout in ("page_first_direct", "page_head"):
        return indices // host.page_size, indices % host.page_size
    return indices
