"""Which pages may be shared with whom: the identity of the space that holds one host pool's pages.

Two engines meet in one space only if a page of one is byte for byte a page of the other. SGLang's own keys name
the tokens and nothing else, so everything that decides what the bytes are is written down here: model, revision,
pool, dtype, layout, geometry, page size, ranks and the order in which a page is serialised.

Deliberately absent: ``dp_rank``. Data-parallel replicas hold the same content and must share it.
"""

from __future__ import annotations

import logging
from typing import Any

logger = logging.getLogger(__name__)

SCHEME = "1"
"""Version of the rules in this file. A change of meaning needs a new number, so that old pages become misses."""

_GEOMETRY = ("layer_num", "head_num", "head_dim", "v_head_dim", "kv_lora_rank", "qk_rope_head_dim", "kv_cache_dim")

# Storage types under which SGLang keeps formats that torch cannot index; they do not tell e4m3 from e5m2.
_OPAQUE_DTYPES = ("uint8", "int8")


def space_fields(config: Any, options: Any, view: Any) -> dict[str, str]:
    """The description of the space for one pool.

    ``config`` is SGLang's storage config, ``options`` the backend's own options and ``view`` the
    :class:`~memkv_sglang.pools.PoolView` of the pool.
    """
    fields = {
        "engine": "sglang",
        "scheme": SCHEME,
        "pool": view.name,
        "dtype": view.dtype,
        "layout": view.layout,
        "page_tokens": str(view.page_tokens),
        "page_bytes": str(view.page_bytes),
        "serial": view.serial,
        "geometry": _geometry(view.pool, view.heads_divided_by),
    }
    model = getattr(config, "model_name", None)
    if model:
        fields["model"] = str(model)
    if options.revision:
        fields["revision"] = options.revision
    if options.tag:
        fields["tag"] = options.tag
    if view.dtype in _OPAQUE_DTYPES and (kv_dtype := engine_kv_dtype()):
        fields["kv_dtype"] = kv_dtype
    if not is_shared_over_tp(config, view):
        fields["tp_rank"] = str(view.tp_slice if view.tp_slice is not None else _int(config, "tp_rank", 0))
        fields["tp_size"] = str(_int(config, "tp_size", 1) * view.heads_divided_by)
    for ours, theirs in (("pp", "pp"), ("cp", "attn_cp"), ("dcp", "dcp")):
        size = _int(config, f"{theirs}_size", 1)
        if size > 1:
            fields[f"{ours}_rank"] = str(_int(config, f"{theirs}_rank", 0))
            fields[f"{ours}_size"] = str(size)
    return fields


def is_shared_over_tp(config: Any, view: Any) -> bool:
    """Whether every tensor-parallel rank holds the same bytes in this pool.

    ``is_mla_model`` speaks of the main KV. Mamba state and multi-head pools (drafts of such a model) are divided
    over the ranks all the same.
    """
    if not getattr(config, "is_mla_model", False):
        return False
    return view.name != "mamba" and not hasattr(view.pool, "head_num")


def engine_kv_dtype() -> str | None:
    """The KV dtype that the engine was started with, as far as this SGLang release tells."""
    for read in (_kv_dtype_from_context, _kv_dtype_from_server_args):
        try:
            value = read()
        except Exception as error:  # every release keeps it somewhere else; none of them is required
            logger.debug("no kv cache dtype from %s: %s", read.__name__, error)
            continue
        if value:
            return str(value)
    return None


def _kv_dtype_from_context() -> Any:
    from sglang.srt.runtime_context import get_model

    return get_model().kv_cache_dtype


def _kv_dtype_from_server_args() -> Any:
    from sglang.srt.server_args import get_global_server_args

    return get_global_server_args().kv_cache_dtype


def _geometry(pool: Any, heads_divided_by: int) -> str:
    parts = []
    for name in _GEOMETRY:
        value = getattr(pool, name, None)
        if isinstance(value, int):
            if name == "head_num":
                value //= heads_divided_by
            parts.append(f"{name}={value}")
    return ",".join(parts)


def _int(config: Any, name: str, default: int) -> int:
    value = getattr(config, name, default)
    return default if value is None else int(value)
