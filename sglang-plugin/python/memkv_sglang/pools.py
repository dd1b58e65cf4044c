"""SGLang's host pools as the store sees them: how a page is addressed, how long it is, in which order it is read.

Every pool gets a :class:`PoolView`. There are three kinds of them:

- *addressed*: a page is a fixed list of pieces of memory, and each piece moves by a constant stride from page to
  page. The store reads and writes the pool's memory directly.
- *copied*: the pool only hands out flat tensors. Pages go through a staging buffer.
- *logical*: the pool holds no bytes (the anchor of DeepSeek-V4). Nothing is stored for it.

The addresses of an addressed pool are learned once, by asking the pool about a few pages, and checked against the
pool's own buffers. Later calls only compute; no Python runs per token or per piece.

Invariant: two views with one ``serial``, ``layout``, ``dtype`` and geometry put the same bytes in the same order. The
flat tensors of the v0 interface and the pieces of the v1 interface share pages where that can be shown from the
memory itself, and otherwise get different serials.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from memkv_sglang import _native

logger = logging.getLogger(__name__)

FLAT = "flat"
PIECES = "pieces"


@dataclass(frozen=True)
class PoolView:
    """One host pool, or one slice of its heads."""

    name: str
    pool: Any = field(repr=False)
    layout: str
    dtype: str
    page_tokens: int
    page_bytes: int
    serial: str
    page_map: _native.PageMap | None = None
    """Addresses of the pages; ``None`` if the pool is copied or logical."""
    flat_dtype: torch.dtype | None = None
    """Element type of the pool's flat pages; ``None`` if it has none."""
    logical: bool = False
    heads_divided_by: int = 1
    tp_slice: int | None = None
    """Which of the finest tensor-parallel slices this view is, if the heads are divided."""


@dataclass(frozen=True)
class Addresses:
    """Pieces of page 0, and how far each one moves from a page to the next, in bytes."""

    bases: list[int]
    strides: list[int]
    sizes: list[int]

    def select(self, order: Sequence[int]) -> Addresses:
        """The pieces in another order, or some of them."""
        return Addresses(*([column[i] for i in order] for column in (self.bases, self.strides, self.sizes)))


def pool_name(name: Any) -> str:
    """The plain text of a pool's name; SGLang uses an enum whose members hash unlike their text."""
    return str(getattr(name, "value", name))


def unwrap(pool: Any) -> Any:
    """The anchor pool itself, should a whole pool group have been handed over."""
    entry = getattr(pool, "anchor_entry", None)
    return pool if entry is None else entry.host_pool


def view_pool(pool: Any, name: str, *, as_tensors: bool = False) -> PoolView:
    """Describes a pool. ``as_tensors`` is for the anchor under the v0 interface, where SGLang copies by itself.

    Raises ``ValueError`` if the pool can be neither addressed nor copied.
    """
    common = {
        "name": name,
        "pool": pool,
        "layout": str(getattr(pool, "layout", "unknown")),
        "dtype": _dtype(pool),
        "page_tokens": _page_tokens(pool),
    }
    if _is_logical(pool, common["page_tokens"]):
        return PoolView(**common, page_bytes=0, serial=FLAT, logical=True)
    dummy = _dummy_page(pool)
    flat_dtype = None if dummy is None else dummy.dtype
    if not as_tensors and (addresses := _probe_pool(pool, common["page_tokens"])) is not None:
        order = _flat_order(pool, addresses)
        if order is not None:
            addresses = addresses.select(order)
        return PoolView(
            **common,
            page_bytes=sum(addresses.sizes),
            serial=PIECES if order is None else FLAT,
            page_map=_page_map(addresses, pool, common["page_tokens"]),
            flat_dtype=flat_dtype,
        )
    if dummy is None:
        hint = '; set "interface_v1": 1 in the storage backend extra config' if as_tensors else ""
        raise ValueError(
            f"memkv cannot store the host pool {name!r} ({type(pool).__name__}, layout {common['layout']}): it offers"
            f" {'no flat pages' if as_tensors else 'neither page addresses nor flat pages'}{hint}"
        )
    return PoolView(**common, page_bytes=dummy.numel() * dummy.element_size(), serial=FLAT, flat_dtype=flat_dtype)


def view_split_pool(pool: Any, name: str, factor: int, tp_rank: int) -> list[PoolView]:
    """One view per slice of heads, for engines of different tensor-parallel size that share pages.

    Raises ``ValueError`` if the pool cannot be divided by ``factor``.
    """
    page_tokens = _page_tokens(pool)
    meta = getattr(pool, "get_split_heads_page_buffer_meta", None)
    addresses = meta and _probe(lambda indices: meta(indices, factor), page_tokens, _pages(pool, page_tokens))
    if not addresses or len(addresses.bases) % factor:
        raise ValueError(
            f"memkv cannot divide the heads of host pool {name!r} ({type(pool).__name__}) by {factor}; "
            "remove tp_lcm_size from the storage backend extra config"
        )
    per_slice = len(addresses.bases) // factor
    views = []
    for index in range(factor):
        part = addresses.select(range(index * per_slice, (index + 1) * per_slice))
        views.append(
            PoolView(
                name=name,
                pool=pool,
                layout=str(pool.layout),
                dtype=_dtype(pool),
                page_tokens=page_tokens,
                page_bytes=sum(part.sizes),
                serial=FLAT,
                page_map=_page_map(part, pool, page_tokens),
                heads_divided_by=factor,
                tp_slice=tp_rank * factor + index,
            )
        )
    return views


def buffers(pool: Any) -> list[torch.Tensor]:
    """The tensors that hold a pool's bytes."""
    read = getattr(pool, "get_hybrid_pool_buffer", None)
    found = read() if callable(read) else getattr(pool, "kv_buffer", None)
    if isinstance(found, torch.Tensor):
        found = [found]
    flat: list[torch.Tensor] = []
    for item in found or []:
        flat.extend(item if isinstance(item, (list, tuple)) else [item])
    return [tensor for tensor in flat if isinstance(tensor, torch.Tensor) and tensor.numel() > 0]


def first_slots(indices: torch.Tensor, page_tokens: int) -> bytes:
    """The first token slot of every page, as native 64-bit integers."""
    return indices[::page_tokens].to(device="cpu", dtype=torch.int64).contiguous().numpy().tobytes()


def _probe_pool(pool: Any, page_tokens: int) -> Addresses | None:
    meta = getattr(pool, "get_page_buffer_meta", None)
    if meta is None:
        return None
    pages = _pages(pool, page_tokens)
    addresses = _probe(meta, page_tokens, pages)
    if addresses is None or not _inside(addresses, pages, buffers(pool)):
        return None
    return addresses


def _probe(meta: Callable[[torch.Tensor], Any], page_tokens: int, pages: int) -> Addresses | None:
    """Asks for a few pages and returns the rule their addresses follow, or ``None`` if there is none."""
    samples = sorted({0, min(1, pages - 1), pages // 2, pages - 1})
    if pages < 1:
        return None
    slots = torch.cat([torch.arange(p * page_tokens, (p + 1) * page_tokens, dtype=torch.int64) for p in samples])
    try:
        answer = meta(slots)
    except Exception as error:  # pools refuse layouts with whatever exception they like
        logger.debug("pool gives no page addresses: %s", error)
        return None
    if not answer or not answer[0] or len(answer[0]) != len(answer[1]) or len(answer[0]) % len(samples):
        return None
    ptrs, sizes = [int(p) for p in answer[0]], [int(s) for s in answer[1]]
    count = len(ptrs) // len(samples)
    rows = [ptrs[i * count : (i + 1) * count] for i in range(len(samples))]
    size_rows = [sizes[i * count : (i + 1) * count] for i in range(len(samples))]
    strides = [b - a for a, b in zip(rows[0], rows[1], strict=True)] if len(rows) > 1 else [0] * count
    for page, row, size_row in zip(samples, rows, size_rows, strict=True):
        expected = [base + page * stride for base, stride in zip(rows[0], strides, strict=True)]
        if row != expected or size_row != size_rows[0]:
            return None
    return Addresses(rows[0], strides, size_rows[0])


def _inside(addresses: Addresses, pages: int, tensors: list[torch.Tensor]) -> bool:
    """Whether the first and the last page lie in the pool's own buffers."""
    ranges = [(t.data_ptr(), t.data_ptr() + t.numel() * t.element_size()) for t in tensors]
    for base, stride, size in zip(addresses.bases, addresses.strides, addresses.sizes, strict=True):
        first, last = base, base + stride * (pages - 1)
        low, high = min(first, last), max(first, last) + size
        if not any(start <= low and high <= end for start, end in ranges):
            return False
    return True


def _flat_order(pool: Any, addresses: Addresses) -> list[int] | None:
    """The order of the pieces in which they spell the pool's flat page, or ``None`` if that cannot be shown.

    The flat page of a pool is the row-major order of a view on its buffer, so the view's strides give the order.
    """
    try:
        page = pool.get_data_page(0, flat=False)
    except Exception as error:  # asymmetric pools have no flat pages
        logger.debug("pool gives no flat page: %s", error)
        return None
    if not isinstance(page, torch.Tensor) or page.numel() == 0:
        return None
    runs = _runs(page)
    pieces = dict(zip(addresses.bases, range(len(addresses.bases)), strict=True))
    order = [pieces.get(start) for start, _ in runs]
    sizes = [size for _, size in runs]
    if None in order or sorted(order) != list(range(len(addresses.bases))):
        return None
    return order if [addresses.sizes[i] for i in order] == sizes else None


def _runs(page: torch.Tensor) -> list[tuple[int, int]]:
    """The contiguous runs of a view, as address and bytes, in row-major order."""
    shape, stride = list(page.shape), list(page.stride())
    elements = 1
    while shape and (shape[-1] == 1 or stride[-1] == elements):
        elements *= shape.pop()
        stride.pop()
    width = page.element_size()
    start = page.data_ptr()
    return [
        (start + width * sum(i * s for i, s in zip(place, stride, strict=True)), elements * width)
        for place in itertools.product(*map(range, shape))
    ]


def _page_map(addresses: Addresses, pool: Any, page_tokens: int) -> _native.PageMap:
    return _native.PageMap(
        addresses.bases, addresses.strides, addresses.sizes, page_tokens=page_tokens, pages=_pages(pool, page_tokens)
    )


def _dummy_page(pool: Any) -> torch.Tensor | None:
    make = getattr(pool, "get_dummy_flat_data_page", None)
    if make is None:
        return None
    try:
        page = make()
    except Exception as error:  # asymmetric pools have no flat pages
        logger.debug("pool makes no flat page: %s", error)
        return None
    return page if isinstance(page, torch.Tensor) and page.numel() > 0 else None


def _is_logical(pool: Any, page_tokens: int) -> bool:
    """Whether the pool says by all its interfaces that it has no bytes; a doubt must not become a false success."""
    if getattr(pool, "kv_buffer", pool) is not None or buffers(pool):
        return False
    meta = getattr(pool, "get_page_buffer_meta", None)
    return meta is not None and meta(torch.arange(page_tokens, dtype=torch.int64)) is None


def _page_tokens(pool: Any) -> int:
    return int(getattr(pool, "page_size", 1) or 1)


def _pages(pool: Any, page_tokens: int) -> int:
    return int(getattr(pool, "size", 0)) // page_tokens


def _dtype(pool: Any) -> str:
    """The pool's element types, for example ``bfloat16`` or, for states of two kinds, ``bfloat16+float32``."""
    found = [getattr(pool, name, None) for name in ("dtype", "temporal_dtype", "indexer_dtype")]
    names = [str(dtype).removeprefix("torch.") for dtype in found if dtype is not None]
    return "+".join(dict.fromkeys(names))
