"""The plugin beside the crate: batches of pages of one of SGLang's host pools, and the same batches by ``memkv-bench load``.

Both use one daemon, TCP or shared memory, pages of 1 MiB, batches of 128, and take turns. The daemon's memory is made resident
first: otherwise the plugin would pay for fresh memory that the load generator has paid for in its first round. Each goes on for
a second of its op in a turn, and does not count its first pass: for some fifty milliseconds after a pause of a second or more
either of them puts a third slower. What the plugin read is compared with what it wrote between the timed parts, and removed, as the load
generator does: nothing is evicted for either. SGLang's host pool is shared memory, which has pages of 4 KiB on most systems, so
the load generator gets no huge pages either. Run it with ``cargo xtask bench plugin``.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / name) for name in ("demo", "tests")]

import torch
from conftest import AUTH_KEY, Daemon
from cpu_engine import run_without_gpu
from rig import attach
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool
from sglang.srt.mem_cache.pool_host.mha import get_mha_host_pool_cls

PAGE_TOKENS = 8
PAGE_BYTES = 1 << 20
BATCH = 128
TURN_SECONDS = 1.0
"""How long the puts of a turn take together, and about how long the gets."""


def host_pool(pages: int) -> Any:
    """A pool of a model whose eight tokens are 1 MiB: 32 layers, 8 heads of 128, bfloat16."""
    run_without_gpu()
    device = MHATokenToKVPool(
        size=pages * PAGE_TOKENS,
        page_size=PAGE_TOKENS,
        dtype=torch.bfloat16,
        head_num=8,
        head_dim=128,
        layer_num=32,
        device="cpu",
        enable_memory_saver=False,
    )
    info = device.get_device_pool_infos()[0].buffer_info
    return get_mha_host_pool_cls(info)(
        info,
        1.0,
        0,
        PAGE_TOKENS,
        "page_first",
        pin_memory=False,
        device_capacity_tokens=device.size,
        start_layer=device.start_layer,
        end_layer=device.end_layer,
    )


class Plugin:
    """Writes and reads the pages of a pool by interface v1."""

    def __init__(self, server: Daemon, transport: str, pages: int) -> None:
        self.pool = host_pool(pages)
        self.backend = attach([server], "bench", self.pool, extra={"memkv_transport": transport})
        buffer = self.pool.kv_buffer
        flat = buffer.view(torch.int16)
        flat.copy_(torch.randint(-(2**15), 2**15, flat.shape, dtype=torch.int16))
        # The pool has room for more tokens than asked for: [K and V, tokens, layers, heads, dimensions].
        self.used = buffer[:, : pages * PAGE_TOKENS].view(torch.int16)
        self.source = self.used.clone()
        self.batches = [
            torch.arange(first * PAGE_TOKENS, (first + BATCH) * PAGE_TOKENS) for first in range(0, pages, BATCH)
        ]
        self.pages = pages
        self.passes = 0

    def keys(self, number: int) -> list[list[str]]:
        """New keys for every pass."""
        names = [hashlib.sha256(f"{number}/{page}".encode()).hexdigest() for page in range(self.pages)]
        return [names[first : first + BATCH] for first in range(0, self.pages, BATCH)]

    def turn(self) -> tuple[float, float]:
        """Gigabytes a second of puts and of gets, medians of the passes of one turn."""
        self._pass()
        passes: list[tuple[float, float]] = []
        while sum(self.pages * PAGE_BYTES / 1e9 / put for put, _ in passes) < TURN_SECONDS:
            passes.append(self._pass())
        put, get = (statistics.median(values) for values in zip(*passes, strict=True))
        return put, get

    def _pass(self) -> tuple[float, float]:
        """All pages are put, read, compared and removed."""
        self.passes += 1
        keys = self.keys(self.passes)
        put = self._timed(self.backend.batch_set_v1, keys)
        self.pool.kv_buffer.zero_()
        get = self._timed(self.backend.batch_get_v1, keys)
        if not torch.equal(self.used, self.source):
            raise SystemExit("the plugin read other bytes than it wrote")
        self.backend.clear()
        return put, get

    def _timed(self, act: Any, keys: list[list[str]]) -> float:
        (first, *rest) = zip(keys, self.batches, strict=True)
        done = [act(*first)]
        begin = time.perf_counter()
        done += [act(*batch) for batch in rest]
        seconds = time.perf_counter() - begin
        if not all(all(batch) for batch in done):
            raise SystemExit("a page was not stored or not found")
        return len(rest) * BATCH * PAGE_BYTES / seconds / 1e9


def use_small_pages() -> None:
    """Keeps this process, and what it starts, from huge pages."""
    pr_set_thp_disable = 41
    if ctypes.CDLL(None, use_errno=True).prctl(pr_set_thp_disable, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl: cannot do without huge pages")


def crate(bench: str, server: Daemon, transport: str, op: str, pages: int) -> float:
    """Gigabytes a second of the load generator, over the same daemon."""
    args = ["load", "--op", op, "--page", "1MiB", "--batch", str(BATCH), "--working-set", f"{pages}MiB", "--json"]
    args += ["--seconds", "1", "--transport", transport, "--servers", server.address]
    environment = {**os.environ, "MEMKV_AUTH_KEY": AUTH_KEY}
    # It asks the daemon that runs, and starts none.
    environment.pop("MEMKV_SERVER_BIN", None)
    output = subprocess.run(
        [bench, *args], env=environment, capture_output=True, text=True, check=False, preexec_fn=use_small_pages
    )
    if output.returncode != 0:
        raise SystemExit(f"memkv-bench load: {output.stderr.strip()}")
    return float(json.loads(output.stdout)["memkv"]["gb_per_s"]["median"])


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bench", required=True, help="the program memkv-bench")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pages", type=int, default=640, help="pages of a pass, a multiple of 128")
    options = parser.parse_args()
    print("| 1 MiB, batch 128 | plugin, GB/s | crate, GB/s | ratio |\n|---|---:|---:|---:|")
    for transport in ("tcp", "shm"):
        measure(options, transport)


def measure(options: argparse.Namespace, transport: str) -> None:
    """Prints the rows of one transport."""
    with tempfile.TemporaryDirectory() as directory:
        server = Daemon(Path(directory), dram="4GiB", more=("--prefault",))
        try:
            plugin = Plugin(server, transport, options.pages)
            rounds: list[tuple[float, float, float, float]] = []
            # The first turn touches fresh memory on both sides and is not counted.
            for _ in range(options.rounds + 1):
                put, get = plugin.turn()
                crates = (crate(options.bench, server, transport, op, options.pages) for op in ("put", "get"))
                rounds.append((put, get, *crates))
        finally:
            server.close()
    medians = [statistics.median(values) for values in zip(*rounds[1:], strict=True)]
    for op, ours, theirs in (("put", medians[0], medians[2]), ("get", medians[1], medians[3])):
        print(f"| {op}, {transport} | {ours:.2f} | {theirs:.2f} | {ours / theirs:.2f} |", flush=True)


if __name__ == "__main__":
    main()
