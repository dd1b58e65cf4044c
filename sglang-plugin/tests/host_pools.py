"""SGLang's host pools, built as SGLang builds them, on plain memory.

Each :class:`Case` makes one kind of pool in one layout and dtype. ``page_bytes`` of a case reads a page out of the
pool's own tensors, without any help from the code under test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from cpu_engine import run_without_gpu
from sglang.srt import runtime_context
from sglang.srt.mem_cache.device_pool_info import MambaStateBufferInfo
from sglang.srt.mem_cache.memory_pool import (
    DSATokenToKVPool,
    MHATokenToKOnlyPool,
    MHATokenToKVPool,
    MLATokenToKVPool,
)
from sglang.srt.mem_cache.memory_pool_host import (
    DeepSeekV4PagedHostPool,
    DeepSeekV4StateHostPool,
    LogicalHostPool,
)
from sglang.srt.mem_cache.pool_host.dsa import DSAIndexerPoolHost, make_dsa_indexer_pool_decl
from sglang.srt.mem_cache.pool_host.mamba import MambaPoolHost
from sglang.srt.mem_cache.pool_host.mha import MHATokenToKOnlyPoolHost, get_mha_host_pool_cls
from sglang.srt.mem_cache.pool_host.mla import MLATokenToKVPoolHost

PAGES = 12
LAYERS = 3
PAGE = 4


@dataclass(frozen=True)
class Case:
    """One kind of host pool."""

    id: str
    make: Callable[[], Any]
    pool_name: str = "kv"
    """The name under which SGLang registers such a pool."""
    flat: bool = True
    """Whether the pool has flat pages, so that the v0 interface can carry it."""
    how: str = "addressed"


def _device(kind: str, dtype: torch.dtype, **extra: Any) -> Any:
    common = {"size": PAGES * PAGE, "page_size": PAGE, "dtype": dtype, "layer_num": LAYERS, "device": "cpu"}
    common |= {"enable_memory_saver": False, **extra}
    if kind == "mla":
        return MLATokenToKVPool(kv_lora_rank=24, qk_rope_head_dim=8, **common)
    if kind == "k_only":
        return MHATokenToKOnlyPool(head_num=2, head_dim=8, **common)
    return MHATokenToKVPool(head_num=2, head_dim=8, **common)


def mha(layout: str, dtype: torch.dtype = torch.bfloat16, **extra: Any) -> Any:
    """A multi-head pool; ``v_head_dim`` makes it asymmetric."""
    run_without_gpu()
    device = _device("mha", dtype, **extra)
    info = device.get_device_pool_infos()[0].buffer_info
    return get_mha_host_pool_cls(info)(
        info,
        1.0,
        0,
        PAGE,
        layout,
        pin_memory=False,
        device_capacity_tokens=device.size,
        start_layer=device.start_layer,
        end_layer=device.end_layer,
    )


def k_only(layout: str) -> Any:
    """The index keys of a sparse model: K without V."""
    anchor = mha("page_first")
    return MHATokenToKOnlyPoolHost(_device("k_only", torch.bfloat16), anchor, layout, pin_memory=False)


def mla(layout: str, dtype: torch.dtype = torch.bfloat16) -> Any:
    """A latent-attention pool."""
    run_without_gpu()
    device = _device("mla", dtype)
    return MLATokenToKVPoolHost(
        device.get_device_pool_infos()[0].buffer_info,
        1.0,
        0,
        PAGE,
        layout,
        pin_memory=False,
        device_capacity_tokens=device.size,
        start_layer=device.start_layer,
        end_layer=device.end_layer,
        target_layer_num=device.layer_num,
    )


def mamba(layout: str, *, side_state: bool = False, conv_only: bool = False) -> Any:
    """The states of linear-attention layers: page size 1, pieces of two dtypes."""
    run_without_gpu()
    slots = PAGES
    temporal = (LAYERS, slots, 2, 0 if conv_only else 5)
    info = MambaStateBufferInfo(
        temporal=torch.zeros(temporal, dtype=torch.float32),
        conv=(
            torch.zeros((LAYERS, slots, 6, 3), dtype=torch.bfloat16),
            torch.zeros((LAYERS, slots, 4, 3), dtype=torch.bfloat16),
        ),
        extra_checkpoint_buffers=(torch.zeros((slots, 7), dtype=torch.uint8),) if side_state else (),
    )
    return MambaPoolHost(info, 1.0, 0, device_capacity=slots, pin_memory=False, layout=layout)


def dsa_indexer(layout: str) -> Any:
    """The index keys of DeepSeek's sparse attention; they ride on the KV slots."""
    run_without_gpu()
    with runtime_context.get_parallel().override(attn_dcp_size=1):
        device = DSATokenToKVPool(
            size=PAGES * 64,
            page_size=64,
            kv_lora_rank=24,
            dtype=torch.bfloat16,
            qk_rope_head_dim=8,
            layer_num=LAYERS,
            device="cpu",
            index_head_dim=128,
            enable_memory_saver=False,
            kv_cache_dim=32,
        )
    anchor = MLATokenToKVPoolHost(
        device.get_device_pool_infos()[0].buffer_info,
        1.0,
        0,
        64,
        layout,
        pin_memory=False,
        device_capacity_tokens=device.size,
        start_layer=device.start_layer,
        end_layer=device.end_layer,
        target_layer_num=device.layer_num,
    )
    return DSAIndexerPoolHost(make_dsa_indexer_pool_decl(device), anchor, pin_memory=False)


def v4_paged(layout: str) -> Any:
    """A compressed pool of DeepSeek-V4."""
    run_without_gpu()
    device = [torch.zeros((PAGES, 96), dtype=torch.uint8) for _ in range(LAYERS)]
    return DeepSeekV4PagedHostPool("deepseek_v4_c4", device, 96, PAGES, PAGE, layout=layout, pin_memory=False)


def v4_state(layout: str) -> Any:
    """A state pool of DeepSeek-V4; its rows follow the SWA slots."""
    run_without_gpu()
    states = [
        SimpleNamespace(ring_size=2, kv_score_buffer=SimpleNamespace(kv_score=torch.zeros((PAGES * 2, 12))))
        for _ in range(LAYERS)
    ]
    return DeepSeekV4StateHostPool("deepseek_v4_c4_state", states, PAGES, PAGE, layout=layout, pin_memory=False)


def logical() -> Any:
    """The anchor of DeepSeek-V4: slots without bytes."""
    return LogicalHostPool(PAGES * PAGE, PAGE)


def _cases() -> list[Case]:
    fp8 = torch.float8_e4m3fn
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp8": fp8}
    cases = [
        Case(f"mha-{layout}-{name}", lambda layout=layout, dtype=dtype: mha(layout, dtype))
        for layout in ("layer_first", "page_first", "page_first_direct", "page_head")
        for name, dtype in dtypes.items()
    ]
    cases += [
        Case(f"mla-{layout}-{name}", lambda layout=layout, dtype=dtype: mla(layout, dtype))
        for layout in ("layer_first", "page_first", "page_first_direct")
        for name, dtype in dtypes.items()
    ]
    for layout in ("page_first", "page_first_direct"):
        cases.append(Case(f"asymmetric-{layout}", lambda layout=layout: mha(layout, v_head_dim=4), flat=False))
        cases.append(Case(f"mamba-{layout}", lambda layout=layout: mamba(layout), "mamba"))
        cases.append(Case(f"k_only-{layout}", lambda layout=layout: k_only(layout), "indexer"))
    cases += [
        Case("mamba-side_state", lambda: mamba("page_first", side_state=True), "mamba", how="copied"),
        Case("mamba-conv_only", lambda: mamba("page_first", conv_only=True), "mamba"),
        Case("k_only-layer_first", lambda: k_only("layer_first"), "indexer", how="copied"),
    ]
    for layout in ("layer_first", "page_first", "page_first_direct"):
        how = "copied" if layout == "layer_first" else "addressed"
        cases.append(Case(f"dsa_indexer-{layout}", lambda layout=layout: dsa_indexer(layout), "indexer", how=how))
        cases.append(Case(f"v4_paged-{layout}", lambda layout=layout: v4_paged(layout), "deepseek_v4_c4"))
        cases.append(Case(f"v4_state-{layout}", lambda layout=layout: v4_state(layout), "deepseek_v4_c4_state"))
    return cases


CASES = _cases()


def tensors(pool: Any) -> list[torch.Tensor]:
    """All tensors of a pool that hold pages."""
    if hasattr(pool, "index_k_with_scale_buffer"):
        return [pool.index_k_with_scale_buffer]
    if hasattr(pool, "temporal_buffer"):
        return [t for t in (pool.temporal_buffer, *pool.conv_buffer, *pool.slot_state_buffers) if t.numel()]
    if hasattr(pool, "kv_buffer"):
        buffer = pool.kv_buffer
        if isinstance(buffer, torch.Tensor):
            return [buffer]
        return list(buffer)
    return [pool.k_buffer]


def page_axis(pool: Any, tensor: torch.Tensor) -> tuple[int, int]:
    """Which axis of a tensor counts pages or slots, and how many of its steps one page has."""
    slots = {PAGES, pool.page_num if hasattr(pool, "page_num") else PAGES, getattr(pool, "indexer_page_num", PAGES)}
    for axis, length in enumerate(tensor.shape):
        if length == pool.size and pool.page_size > 1:
            return axis, pool.page_size
        if length in slots or length == pool.size:
            return axis, 1
    raise AssertionError(f"no page axis in {tuple(tensor.shape)}")


def page_bytes(pool: Any, page: int) -> list[bytes]:
    """Every byte of one page, in the tensors' own order."""
    found = []
    for tensor in tensors(pool):
        axis, steps = page_axis(pool, tensor)
        rows = tensor.narrow(axis, page * steps, steps).contiguous()
        found.append(rows.view(torch.uint8).numpy().tobytes())
    return found


def fill(pool: Any, seed: int) -> None:
    """Random bytes everywhere."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in tensors(pool):
        data = torch.randint(0, 256, (tensor.numel() * tensor.element_size(),), dtype=torch.uint8, generator=generator)
        tensor.view(torch.uint8).reshape(-1).copy_(data)


def wipe(pool: Any) -> None:
    """Zeroes everywhere."""
    for tensor in tensors(pool):
        tensor.view(torch.uint8).zero_()


def slots(pool: Any, pages: list[int]) -> torch.Tensor:
    """Token slots of the given pages, as SGLang hands them over."""
    size = pool.page_size
    return torch.cat([torch.arange(page * size, (page + 1) * size, dtype=torch.int64) for page in pages])
