"""Mooncake Store under load: both of its sides, driven by memkv-bench.

    mooncake_peer.py server MASTER_PORT BYTES      holds the pages; says "ready"
    mooncake_peer.py client MASTER_PORT BYTES      has a working set of BYTES; takes a JSON order a line

Orders, each answered by one JSON line (an "error" instead when it failed):
    {"do": "put" | "get", "page": 65536, "batch": 128, "count": 8192, "name": "a"}  -> {"nanos": [...]}, one a batch
    {"do": "exists", "count": 128, "name": "a", "times": 100}                       -> {"nanos": [...]}, one a request
    {"do": "clear"}                                                                 -> {}

Filling, spoiling and comparing happen outside of the timed calls.
"""

import ctypes
import json
import mmap
import os
import sys
import time

from mooncake.store import MooncakeDistributedStore

LOCAL_BUFFER_BYTES = 64 << 20


def connect(master_port, segment_bytes):
    store = MooncakeDistributedStore()
    # Port 0: the store chooses one. Metadata goes from peer to peer, without a server for it.
    code = store.setup(
        "127.0.0.1", "P2PHANDSHAKE", segment_bytes, LOCAL_BUFFER_BYTES, "tcp", "", f"127.0.0.1:{master_port}"
    )
    if code != 0:
        sys.exit(f"the store's setup failed with {code}")
    return store


class Memory:
    """A working set whose bytes all differ, and where it comes back to."""

    def __init__(self, store, size):
        self.size = size
        self.source, self.target = mmap.mmap(-1, size), mmap.mmap(-1, size)
        # Random bytes, and behind each half of a MiB its number.
        block = os.urandom(512 << 10)
        for at in range(0, size, len(block)):
            part = (at.to_bytes(8, "little") + block[8:])[: size - at]
            self.source[at : at + len(part)] = part
        self.spoiler = b"\xee" * (1 << 20)
        self.addresses = [ctypes.addressof(ctypes.c_char.from_buffer(m)) for m in (self.source, self.target)]
        for address in self.addresses:
            if store.register_buffer(address, size) != 0:
                sys.exit("the store registers no buffer")

    def spoil(self, size):
        for at in range(0, size, len(self.spoiler)):
            part = self.spoiler[: size - at]
            self.target[at : at + len(part)] = part

    def same(self, size):
        with memoryview(self.source) as source, memoryview(self.target) as target:
            step = 1 << 20
            return all(source[at : at + step] == target[at : at + step] for at in range(0, size, step))


def keys(name, count):
    return [f"{name}-{number:016x}" for number in range(count)]


def move(store, memory, order):
    """Puts or gets the working set; returns nanoseconds of each batch."""
    page, batch, count = order["page"], order["batch"], order["count"]
    is_get = order["do"] == "get"
    call, address = (
        (store.batch_get_into, memory.addresses[1]) if is_get else (store.batch_put_from, memory.addresses[0])
    )
    if is_get:
        memory.spoil(count * page)
    names, nanos = keys(order["name"], count), []
    wanted = page if is_get else 0
    for first in range(0, count, batch):
        part = names[first : first + batch]
        places = [address + (first + i) * page for i in range(len(part))]
        begun = time.perf_counter_ns()
        codes = call(part, places, [page] * len(part))
        nanos.append(time.perf_counter_ns() - begun)
        if any(code != wanted for code in codes):
            raise RuntimeError(f"a page ended with {[code for code in codes if code != wanted][0]}")
    if is_get and not memory.same(count * page):
        raise RuntimeError("wrong bytes")
    return {"nanos": nanos}


def exists(store, order):
    names, nanos = keys(order["name"], order["count"]), []
    for _ in range(order["times"]):
        begun = time.perf_counter_ns()
        codes = store.batch_is_exist(names)
        nanos.append(time.perf_counter_ns() - begun)
        if any(code != 1 for code in codes):
            raise RuntimeError("a page is not there")
    return {"nanos": nanos}


def carry_out(store, memory, order):
    if order["do"] == "clear":
        # Forced: pages that were just read are under a lease otherwise.
        store.remove_all(True)
        return {}
    if order["do"] == "exists":
        return exists(store, order)
    return move(store, memory, order)


def main():
    role, master_port, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    store = connect(master_port, size if role == "server" else 0)
    memory = Memory(store, size) if role == "client" else None
    # The library writes to stdout as well; answers are the lines that begin with this sign.
    print("=ready", flush=True)
    for line in sys.stdin:
        try:
            answer = carry_out(store, memory, json.loads(line))
        except Exception as error:
            answer = {"error": repr(error)}
        print("=" + json.dumps(answer), flush=True)


main()
