#!/usr/bin/env python3
"""This crate's tree beside the one that SGLang runs with, on the same prompts and in the same run.

    cargo build --release -p memkv-radix --example tree_cost
    PYTHON_WITH_SGLANG crates/radix/benches/beside_sglang.py target/release/examples/tree_cost

What is compared: SGLang's tree core in Rust, as its PyPI package has it (sglang.srt.mem_cache.rust_tree_core), called
through its Python adapter as SGLang's scheduler calls it, against this crate called from Rust. So SGLang's figures
contain the crossing from Python, which its users pay at each call, but not the making of keys and slot tensors, which
is outside the timing. Its core keeps a slot per token, this crate a page number per page. Neither figure contains
digests, except those of this crate that say so: SGLang computes them later, when a node is backed up.
The prompts: benches/workload.rs. A chunk is what one insert adds; each insert passes the whole prefix.
"""

import array
import json
import subprocess
import sys
import time

import numpy as np
import torch
from sglang.srt.mem_cache.base_prefix_cache import InsertParams, MatchPrefixParams
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.rust_tree_core.adapter import RustUnifiedTreeCore
from sglang.srt.mem_cache.unified_cache.components import ComponentType

PAGE, PROMPT, SHARED, GROUP = 64, 32 * 1024, 4096, 16
PROMPTS = 139 * GROUP


def prompt(number):
    at = np.arange(PROMPT, dtype=np.uint64)
    owner = np.where(at < SHARED, 1_000_000 + number // GROUP, number).astype(np.uint64)
    mixed = (owner * np.uint64(0x9E3779B1) + at * np.uint64(0x85EBCA6B)) & np.uint64(0xFFFFFFFF)
    return (mixed >> np.uint64(15)).astype(np.int64)


def key_of(tokens):
    key = array.array("q")
    key.frombytes(tokens.tobytes())
    return RadixKey(key)


def insert(core, key, value, owned):
    step = core.begin_insert(InsertParams(key=key, value=value, prev_prefix_len=owned))
    while step.result is None:
        step = core.resume_insert()
    core.end_insert()
    return step.result


def run(chunk_pages):
    core = RustUnifiedTreeCore(
        CacheInitParams(
            disable=False,
            req_to_token_pool=None,
            token_to_kv_pool_allocator=None,
            page_size=PAGE,
            tree_components=(ComponentType.FULL,),
        )
    )
    seconds, slots, pages = 0.0, 0, 0
    for number in range(PROMPTS):
        tokens, owned = prompt(number), 0
        value = torch.arange(slots, slots + PROMPT, dtype=torch.int64)
        slots += PROMPT
        while owned < PROMPT:
            end = min(PROMPT, owned + chunk_pages * PAGE)
            key, part = key_of(tokens[:end]), value[:end]
            start = time.perf_counter()
            result = insert(core, key, part, owned)
            seconds += time.perf_counter() - start
            pages += (end - max(owned, result.prefix_len)) // PAGE if result.prefix_len < end else 0
            owned = end
    times = []
    for at in range(400):
        params = MatchPrefixParams(key=key_of(prompt(at * 97 % PROMPTS)))
        start = time.perf_counter()
        found = core.match_prefix(params)
        times.append(time.perf_counter() - start)
        assert found.device_prefix_len == PROMPT, found
    times.sort()
    return {
        "tree": "sglang",
        "chunk_pages": chunk_pages,
        "pages": pages,
        "insert_pages_per_s": round(pages / seconds),
        "match_us_p50": round(times[200] * 1e6, 2),
        "match_us_p99": round(times[396] * 1e6, 2),
    }


def main():
    ours = subprocess.run([sys.argv[1]], check=True, capture_output=True, text=True).stdout
    for line in ours.splitlines():
        print(json.dumps({"tree": "memkv-radix", **json.loads(line)}), flush=True)
    for chunk_pages in (512, 32):
        print(json.dumps(run(chunk_pages)), flush=True)


if __name__ == "__main__":
    main()
