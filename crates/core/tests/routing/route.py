"""Routing in another language, from docs/routing.md alone: checks docs/routing-vectors.txt.

Needs nothing but Python 3. XXH3-64 is written out for the lengths that occur: 1 to 528 bytes, seed 0.
"""

import math
import sys

M = (1 << 64) - 1
P32 = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D)
P64 = (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5)
SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f"
    "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
    "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
    "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e"
    "2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)


def word(data, at, size=8):
    return int.from_bytes(data[at : at + size], "little")


def fold(a, b):
    product = a * b
    return (product & M) ^ (product >> 64)


def finish(x):
    x ^= x >> 37
    x = x * 0x165667919E3779F9 & M
    return x ^ x >> 32


def finish_short(x):
    x ^= x >> 33
    x = x * P64[1] & M
    x ^= x >> 29
    x = x * P64[2] & M
    return x ^ x >> 32


def rotate(x, by):
    return (x << by | x >> (64 - by)) & M


def swap(x):
    return int.from_bytes(x.to_bytes(8, "little"), "big")


def mix16(data, at, secret):
    return fold(word(data, at) ^ word(SECRET, secret), word(data, at + 8) ^ word(SECRET, secret + 8))


def xxh3(data):
    size = len(data)
    if size <= 3:
        both = data[0] << 16 | data[size >> 1] << 24 | data[-1] | size << 8
        return finish_short(both ^ word(SECRET, 0, 4) ^ word(SECRET, 4, 4))
    if size <= 8:
        both = word(data, size - 4, 4) | word(data, 0, 4) << 32
        x = both ^ word(SECRET, 8) ^ word(SECRET, 16)
        x ^= rotate(x, 49) ^ rotate(x, 24)
        x = x * 0x9FB21C651E98DF25 & M
        x ^= (x >> 35) + size
        x = x * 0x9FB21C651E98DF25 & M
        return x ^ x >> 28
    if size <= 16:
        low = word(data, 0) ^ word(SECRET, 24) ^ word(SECRET, 32)
        high = word(data, size - 8) ^ word(SECRET, 40) ^ word(SECRET, 48)
        return finish((size + swap(low) + high + fold(low, high)) & M)
    if size <= 128:
        acc = size * P64[0]
        for pair in range((size - 1) // 32, -1, -1):
            acc += mix16(data, 16 * pair, 32 * pair)
            acc += mix16(data, size - 16 * (pair + 1), 32 * pair + 16)
        return finish(acc & M)
    if size <= 240:
        acc = size * P64[0]
        for at in range(8):
            acc += mix16(data, 16 * at, 16 * at)
        acc = finish(acc & M)
        for at in range(8, size // 16):
            acc += mix16(data, 16 * at, 16 * (at - 8) + 3)
        acc += mix16(data, size - 16, 136 - 17)
        return finish(acc & M)
    assert size <= 1024, "longer than any space and key"
    acc = [P32[2], P64[0], P64[1], P64[2], P64[3], P32[1], P64[4], P32[0]]
    stripes = [(64 * at, 8 * at) for at in range((size - 1) // 64)] + [(size - 64, 121)]
    for at, secret in stripes:
        for lane in range(8):
            value = word(data, at + 8 * lane)
            key = value ^ word(SECRET, secret + 8 * lane)
            acc[lane ^ 1] = (acc[lane ^ 1] + value) & M
            acc[lane] = (acc[lane] + (key & 0xFFFFFFFF) * (key >> 32)) & M
    total = size * P64[0]
    for at in range(4):
        a, b = word(SECRET, 11 + 16 * at), word(SECRET, 19 + 16 * at)
        total += fold(acc[2 * at] ^ a, acc[2 * at + 1] ^ b)
    return finish(total & M)


def mix(x):
    x ^= x >> 30
    x = x * 0xBF58476D1CE4E5B9 & M
    x ^= x >> 27
    x = x * 0x94D049BB133111EB & M
    return x ^ x >> 31


def score(digest, node, weight):
    if weight == 0:
        return None
    x = mix(digest ^ mix(xxh3(node.encode())))
    return weight / -math.log(((x >> 11) + 0.5) / 2**53)


def order(digest, nodes):
    """The ids of the nodes with weight, best first; of equal scores, the smaller id first."""
    ranked = [(-score(digest, node, weight), node) for node, weight in nodes if weight > 0]
    return [node for _, node in sorted(ranked)]


def check(lines):
    nodes, checked = {}, 0
    for line in lines:
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if words[0] == "nodes":
            members = [entry.rsplit("*", 1) for entry in words[2:]]
            nodes[words[1]] = [(node, int(weight)) for node, weight in members]
            continue
        assert words[0] == "route", line
        fields = dict(word.split("=", 1) for word in words[1:])
        digest = xxh3(bytes.fromhex(fields["space"]) + bytes.fromhex(fields["key"]))
        assert digest == int(fields["digest"], 16), line
        cluster = nodes[fields["nodes"]]
        assert order(digest, cluster) == fields["order"].split(","), line
        best = score(digest, order(digest, cluster)[0], dict(cluster)[order(digest, cluster)[0]])
        assert math.isclose(best, float(fields["score"]), rel_tol=1e-9), line
        checked += 1
    return checked


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as vectors:
        print(check(vectors), "vectors agree")
