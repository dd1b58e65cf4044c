#!/usr/bin/env python3
"""Traces for the eviction policy tlru (T-LRU), which gen_radix.py does not have. Standard library only.

    python3 gen_tlru.py         # rewrites tlru_trace.json

A node's depth is the count of tokens from the root to its end; its history is the largest depth that was ever inserted
at or below it, and does not shrink; a split's upper node takes over the history. A node is a safe tail if what stays
cached without it covers what the next turn must find: depth - len(node) >= max(history + next_prompt - threshold, 0).
Safe tails go first, then the least recently used.
"""
import json

import gen_radix

THRESHOLD, NEXT_PROMPT = 12, 4


def depth(node):
    tokens = 0
    while node.parent is not None:
        tokens += len(node.key)
        node = node.parent
    return tokens


def rank(node):
    needed = max(node.history + NEXT_PROMPT - THRESHOLD, 0)
    return (-1 if depth(node) - len(node.key) >= needed else 0, node.access)


class Tree(gen_radix.Tree):
    def split(self, ns, node, at):
        upper = super().split(ns, node, at)
        upper.history = node.history
        return upper

    def insert(self, ns, key, slots, prio):
        before = {id(node) for node in self.walk()}
        done = super().insert(ns, key, slots, prio)
        for node in self.walk():
            if id(node) not in before and not hasattr(node, "history"):
                reach = depth(node)
                while node is not self.root:
                    node.history = max(getattr(node, "history", 0), reach)
                    node = node.parent
        return done


def main():
    gen_radix.Tree = Tree
    gen_radix.POLICIES["tlru"] = rank
    traces = [gen_radix.trace(page, "tlru", 7000 + page, 120) for page in (1, 2, 4)]
    note = dict(note=__doc__, threshold=THRESHOLD, next_prompt=NEXT_PROMPT, traces=traces)
    json.dump(note, open("tlru_trace.json", "w"), separators=(",", ":"))
    print(sum(len(trace["ops"]) for trace in traces), "ops")


if __name__ == "__main__":
    main()
