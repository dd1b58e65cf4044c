"""The plugin under load, for the campaign of faults: every byte that comes back is compared.

``campaign_load.py pools`` drives the storage backend as SGLang's cache controller does, over SGLang's own host pools,
by all three interfaces (v0, v1, v2), one thread a backend. ``campaign_load.py engine`` runs SGLang's whole cache stack
(radix cache, controller and its threads): what was computed leaves for the servers, local caches are emptied, and it
comes back by prefetch. ``tests/campaign`` starts both; servers and key come from ``MEMKV_*``.

Each second a line of JSON with all counters goes to stdout. The load ends with the end of stdin, so it does not outlive
whoever started it. The exit code is 0 unless something raised: wrong bytes and late calls are counters.

Deliberately absent: a judgement on misses. Servers are killed and frozen meanwhile; only wrong bytes, exceptions and
calls that hang are faults of the plugin.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1] / "demo")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from sglang.srt.mem_cache.hicache_storage import HiCacheStorageExtraInfo, PoolName, PoolTransfer  # noqa: E402
from sglang.srt.mem_cache.storage import StorageBackendFactory  # noqa: E402

import host_pools  # noqa: E402
from rig import DYNAMIC, storage_config  # noqa: E402

CALL_SECONDS_MAX = 10.0
"""SGLang waits so long for a call when it detaches; one that takes longer hangs."""
CHAINS = 48
CHAIN = 24
POISON = 0xA5
"""What a host page holds before it is read: a page that is said to be there and was not written shows."""
PAUSE = 0.02
"""Between two rounds of a thread: the load shares its processors with the servers and the faults."""


class Counts:
    """What happened so far; many threads add to it."""

    NAMES = ("calls", "hits", "misses", "stored", "bytes", "unavailable", "wrong", "late", "exceptions")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self.failures: list[Callable[[], int]] = []
        self._failed = 0

    def add(self, **amounts: int) -> None:
        with self._lock:
            self._counts.update(amounts)

    def settle(self) -> None:
        """Takes over what backends have counted; they are closed next and say nothing any more."""
        with self._lock:
            self._failed += sum(count() for count in self.failures)
            self.failures = []

    def line(self) -> str:
        with self._lock:
            failed = self._failed + sum(count() for count in self.failures)
            counts = {name: self._counts[name] for name in self.NAMES}
        return json.dumps({**counts, "unavailable": failed, "resident": resident_bytes()})


class ExceptionCount(logging.Handler):
    """Counts exceptions that SGLang caught and logged."""

    def __init__(self, counts: Counts) -> None:
        super().__init__(logging.WARNING)
        self._counts = counts

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self._counts.add(exceptions=1)


def resident_bytes() -> int:
    """Memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def timed(counts: Counts, call: Callable[[], Any]) -> Any:
    """Makes a call as SGLang does, and notes it if it hung."""
    start = time.monotonic()
    answer = call()
    counts.add(calls=1, late=int(time.monotonic() - start > CALL_SECONDS_MAX))
    return answer


def content(name: str, size: int) -> np.ndarray:
    """The bytes of a page: they follow from its key."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    return np.random.Generator(np.random.Philox(seed)).integers(0, 256, size, dtype=np.uint8)


class Pool:
    """One of SGLang's host pools, seen as pages of bytes."""

    def __init__(self, pool: Any) -> None:
        self.pool = pool
        self._parts = []
        for tensor in host_pools.tensors(pool):
            axis, steps = host_pools.page_axis(pool, tensor)
            self._parts.append((tensor.view(torch.uint8), axis, steps))
        self.page_bytes = sum(self._rows(part, 0).numel() for part in self._parts)

    @staticmethod
    def _rows(part: tuple[torch.Tensor, int, int], page: int) -> torch.Tensor:
        tensor, axis, steps = part
        return tensor.narrow(axis, page * steps, steps)

    def fill(self, page: int, name: str) -> None:
        data, at = torch.from_numpy(content(name, self.page_bytes)), 0
        for part in self._parts:
            rows = self._rows(part, page)
            rows.copy_(data[at : at + rows.numel()].reshape(rows.shape))
            at += rows.numel()

    def poison(self, page: int) -> None:
        for part in self._parts:
            self._rows(part, page).fill_(POISON)

    def is_right(self, page: int, name: str) -> bool:
        data, at = torch.from_numpy(content(name, self.page_bytes)), 0
        for part in self._parts:
            rows = self._rows(part, page)
            if not torch.equal(rows, data[at : at + rows.numel()].reshape(rows.shape)):
                return False
            at += rows.numel()
        return True

    def slots(self, pages: list[int]) -> torch.Tensor:
        return host_pools.slots(self.pool, pages)


class Backend:
    """A backend from SGLang's factory and what is asked of it."""

    def __init__(self, name: str, how: str, anchor: Any, side: Any, counts: Counts) -> None:
        self.name, self.how, self.counts = name, how, counts
        extra = {**DYNAMIC, "interface_v1": int(how != "v0")}
        self.backend = StorageBackendFactory.create_backend(
            "dynamic", storage_config(f"campaign/{name}", extra), anchor
        )
        self.backend.register_mem_pool_host(anchor)
        self.backend.register_mem_host_pool_v2(anchor, "kv")
        if side is not None:
            self.backend.register_mem_host_pool_v2(side, PoolName.MAMBA)
        self.backend.on_host_pools_registered()
        self.anchor = Pool(anchor)
        self.side = None if side is None else Pool(side)
        counts.failures.append(lambda: sum(self.backend.stats()["failures"].values()))

    def round(self, chance: random.Random) -> None:
        """What a request causes: ask, read what is there, compute the rest, write it."""
        # Some chains are asked for much more often than others.
        chain = min(chance.randrange(CHAINS), chance.randrange(CHAINS))
        begin = chance.randrange(CHAIN // 2)
        count = 1 + chance.randrange(CHAIN - begin)
        names = [hashlib.sha256(f"{self.name}/{chain}/{begin + at}".encode()).hexdigest() for at in range(count)]
        pools = [self.anchor] if self.side is None else [self.anchor, self.side]
        for pool in pools:
            for page in range(count):
                pool.poison(page)
        found = self._exists(names)
        self.counts.add(misses=(count - found) * len(pools))
        fresh = {id(pool): list(range(count)) for pool in pools}
        for pool, flags in self._read(pools, names[:found]):
            hits = [page for page, flag in enumerate(flags) if flag]
            wrong = [page for page in hits if not pool.is_right(page, names[page])]
            for page in wrong:
                print(f"wrong bytes of {names[page]} by {self.name}", file=sys.stderr, flush=True)
            self.counts.add(
                hits=len(hits), misses=len(flags) - len(hits), bytes=len(hits) * pool.page_bytes, wrong=len(wrong)
            )
            fresh[id(pool)] = [page for page in range(count) if page not in hits]
        for pool in pools:
            for page in fresh[id(pool)]:
                pool.fill(page, names[page])
        for pool, flags in self._write(pools, names, fresh):
            self.counts.add(stored=sum(flags), bytes=sum(flags) * pool.page_bytes)

    def _exists(self, names: list[str]) -> int:
        if self.how != "v2":
            return timed(self.counts, lambda: self.backend.batch_exists(names))
        states = [PoolTransfer(name=PoolName.MAMBA, keys=names)]
        return timed(self.counts, lambda: self.backend.batch_exists_v2(names, states)).kv_hit_pages

    def _read(self, pools: list[Pool], names: list[str]) -> list[tuple[Pool, list[bool]]]:
        if not names:
            return []
        pages = list(range(len(names)))
        anchor = pools[0]
        if self.how == "v0":
            targets = [anchor.pool.get_dummy_flat_data_page() for _ in names]
            got = timed(self.counts, lambda: self.backend.batch_get(names, targets))
            for page, data in zip(pages, got, strict=True):
                if data is not None:
                    anchor.pool.set_from_flat_data_page(int(anchor.slots([page])[0]), data)
            return [(anchor, [data is not None for data in got])]
        flags = timed(self.counts, lambda: self.backend.batch_get_v1(names, anchor.slots(pages)))
        read = [(anchor, flags)]
        for side in pools[1:]:
            states = [PoolTransfer(name=PoolName.MAMBA, host_indices=side.slots(pages), keys=names)]
            read.append((side, timed(self.counts, lambda: self.backend.batch_get_v2(states))[PoolName.MAMBA]))
        return read

    def _write(
        self, pools: list[Pool], names: list[str], fresh: dict[int, list[int]]
    ) -> list[tuple[Pool, list[bool]]]:
        written = []
        for pool in pools:
            pages = fresh[id(pool)]
            keys = [names[page] for page in pages]
            if not keys:
                continue
            if self.how == "v0":
                values = [pool.pool.get_data_page(int(pool.slots([page])[0])) for page in pages]
                flags = [timed(self.counts, lambda k=k, v=v: self.backend.set(k, v)) for k, v in zip(keys, values)]
            elif pool is self.side:
                states = [PoolTransfer(name=PoolName.MAMBA, host_indices=pool.slots(pages), keys=keys)]
                flags = timed(self.counts, lambda: self.backend.batch_set_v2(states))[PoolName.MAMBA]
            else:
                before = HiCacheStorageExtraInfo(prefix_keys=names[: pages[0]])
                flags = timed(self.counts, lambda: self.backend.batch_set_v1(keys, pool.slots(pages), before))
            written.append((pool, flags))
        return written

    def close(self) -> None:
        timed(self.counts, self.backend.close)


def pools(counts: Counts, seed: int, over: threading.Event) -> None:
    """One backend for each kind of pool and interface, each with a thread."""
    # Pages of some KiB instead of the tests' few bytes.
    host_pools.PAGE, host_pools.PAGES = 64, CHAIN
    kinds = [
        ("mha-v1", "v1", host_pools.mha("page_first"), None),
        ("mla-v1", "v1", host_pools.mla("page_first_direct", torch.float8_e4m3fn), None),
        ("mha-v0", "v0", host_pools.mha("layer_first", torch.float16), None),
        ("hybrid-v2", "v2", host_pools.mha("page_head"), host_pools.mamba("page_first")),
    ]
    backends = [Backend(name, how, anchor, side, counts) for name, how, anchor, side in kinds]

    def work(number: int, backend: Backend) -> None:
        chance = random.Random(f"{seed}/{number}")
        while not over.is_set():
            try:
                backend.round(chance)
            except Exception:
                logging.getLogger("campaign").exception("%s raised", backend.name)
            time.sleep(PAUSE)

    threads = [threading.Thread(target=work, args=each) for each in enumerate(backends)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts.settle()
    for backend in backends:
        backend.close()


def engine(counts: Counts, seed: int, over: threading.Event) -> None:
    """SGLang's cache stack: compute, back up, forget, prefetch, compare."""
    from array import array

    from cpu_engine import CpuEngine, Shape, prompt
    from sglang.srt.mem_cache.utils import get_hash_str

    shape = Shape(layers=4, heads=2, head_dim=64, page_tokens=32)
    stack = CpuEngine(shape, pages=3 * CHAIN, model_name="campaign/engine")
    counts.failures.append(lambda: sum(stack.backend.stats()["failures"].values()))
    chance = random.Random(f"{seed}/engine")
    while not over.is_set():
        which = min(chance.randrange(CHAINS), chance.randrange(CHAINS))
        tokens = prompt((2 + chance.randrange(CHAIN - 2)) * shape.page_tokens, 1_000 * seed + which)
        wanted = len(tokens) // shape.page_tokens
        try:
            found = timed(counts, lambda tokens=tokens: stack.prefetch(tokens, 30.0)) // shape.page_tokens
            slots = stack.load(tokens)
            wrong = stack.wrong_bytes(tokens, slots)
            if wrong:
                print(f"{wrong} wrong bytes in prompt {which}", file=sys.stderr, flush=True)
            counts.add(
                hits=found, misses=wanted - found, bytes=found * shape.page_bytes, wrong=int(wrong > 0)
            )
            stack.compute(tokens)
            stack.wait_for_backups(30.0)
            names = get_hash_str(array("q", tokens), None, page_size=shape.page_tokens)
            stored = max(0, timed(counts, lambda names=names: stack.backend.batch_exists(names)) - found)
            counts.add(calls=1, stored=stored, bytes=stored * shape.page_bytes)
        except TimeoutError:
            counts.add(late=1)
            logging.getLogger("campaign").exception("the cache stack hung")
        # As SGLang's flush does.
        stack.cache.reset()
        stack.allocator.clear()
        time.sleep(PAUSE)
    counts.settle()
    stack.close()


def main() -> int:
    kind, seed = sys.argv[1], int(sys.argv[2])
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s")
    for noisy in ("server_args", "arg_groups", "mem_cache.l2_transfer", "utils.cpp_extension_loader"):
        logging.getLogger(f"sglang.srt.{noisy}").setLevel(logging.ERROR)
    # Pages that fail are counted, and said by the plugin.
    logging.getLogger("sglang.srt.managers.cache_controller").setLevel(logging.ERROR)
    counts, over = Counts(), threading.Event()
    logging.getLogger().addHandler(ExceptionCount(counts))
    out = sys.stdout

    def until_told() -> None:
        sys.stdin.read()
        over.set()

    def report() -> None:
        while not over.wait(1.0):
            print(counts.line(), file=out, flush=True)

    for duty in (until_told, report):
        threading.Thread(target=duty, daemon=True).start()
    {"pools": pools, "engine": engine}[kind](counts, seed, over)
    print(counts.line(), file=out, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
