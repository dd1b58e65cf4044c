"""Writes spaces.json: how SGLang's plugin describes the spaces of real host pools.

    PYTHONPATH=sglang-plugin/python:sglang-plugin/demo:sglang-plugin/tests \
        python crates/offload/tests/vectors/gen_spaces.py > crates/offload/tests/vectors/spaces.json

Needs the real sglang package. ``sglang-plugin/tests/test_rust_engine.py`` checks that the file is what this writes.
"""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import host_pools
import torch
from memkv_sglang import namespace, options, pools

LAYOUTS = ("layer_first", "page_first", "page_first_direct", "page_head")
DTYPES = {
    "bfloat16": (torch.bfloat16, None),
    "float16": (torch.float16, None),
    "float32": (torch.float32, None),
    "fp8_e4m3": (torch.float8_e4m3fn, "fp8_e4m3"),
    "fp8_e5m2": (torch.float8_e5m2, "fp8_e5m2"),
}
ONE = {"tp_rank": 0, "tp_size": 1, "pp_rank": 0, "pp_size": 1, "attn_cp_rank": 0, "attn_cp_size": 1}
RANKS = [
    {},
    {"tp_rank": 3, "tp_size": 8},
    {"tp_rank": 1, "tp_size": 2, "pp_rank": 1, "pp_size": 4},
    {"attn_cp_rank": 1, "attn_cp_size": 2, "dcp_rank": 0, "dcp_size": 2},
]


def case(kind: str, layout: str, dtype: str, ranks: dict[str, int], **extra: str) -> dict[str, Any]:
    """One pool, one rank, and what the plugin says of them."""
    tensor, kv_dtype = DTYPES[dtype]
    pool = host_pools.mha(layout, tensor) if kind == "mha" else host_pools.mla(layout, tensor)
    model = extra.get("model", "org/model")
    config = SimpleNamespace(model_name=model, is_mla_model=kind == "mla", **{**ONE, **ranks})
    ours = options.parse({f"memkv_{name}": value for name, value in extra.items() if name != "model"})
    before = namespace.engine_kv_dtype
    # What the engine was started with; there is no engine here.
    namespace.engine_kv_dtype = lambda: kv_dtype
    try:
        fields = namespace.space_fields(config, ours, pools.view_pool(pool, "kv"))
    finally:
        namespace.engine_kv_dtype = before
    sizes = {"layers": host_pools.LAYERS, "page_tokens": host_pools.PAGE}
    sizes |= {"kv_heads": 2, "head_dim": 8} if kind == "mha" else {"kv_lora_rank": 24, "qk_rope_head_dim": 8}
    engine = {"kind": kind, "layout": layout, "dtype": dtype, **sizes, **ranks, **extra, "model": model}
    return {"engine": engine, "fields": fields}


def cases() -> list[dict[str, Any]]:
    """Every layout and dtype, every kind of rank, and the operator's own fields."""
    found = [
        case(kind, layout, dtype, {})
        for kind in ("mha", "mla")
        for layout in LAYOUTS
        for dtype in DTYPES
        if (kind, layout) != ("mla", "page_head")
    ]
    found += [case(kind, "page_first", "bfloat16", ranks) for kind in ("mha", "mla") for ranks in RANKS[1:]]
    found.append(case("mha", "page_first", "bfloat16", {}, revision="8c22764", tag="blue"))
    found.append(case("mha", "page_first", "bfloat16", {}, model=""))
    return found


if __name__ == "__main__":
    print("[\n" + ",\n".join(" " + json.dumps(one) for one in cases()) + "\n]")
