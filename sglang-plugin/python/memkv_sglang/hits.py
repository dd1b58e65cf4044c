"""Which prefix lengths can be restored: pure functions over presence flags.

A prefix of ``p`` pages is restorable if *every* pool accepts ``p``. Pools that need only a trailing window accept
some lengths and not others, so the answer is an intersection of sets; the minimum of the pools' maxima is not.
"""

from __future__ import annotations

from collections.abc import Sequence


def leading_run(present: Sequence[bool]) -> int:
    """How many flags are true before the first false one."""
    for index, flag in enumerate(present):
        if not flag:
            return index
    return len(present)


def all_pages(present: Sequence[bool]) -> list[int]:
    """Prefix lengths for which every page is present."""
    return list(range(1, leading_run(present) + 1))


def trailing_pages(present: Sequence[bool], window: int) -> list[int]:
    """Prefix lengths whose last ``window`` pages are present (all of them, if the prefix is shorter)."""
    lengths = []
    run = 0
    for length, flag in enumerate(present, start=1):
        run = run + 1 if flag else 0
        if run >= min(window, length):
            lengths.append(length)
    return lengths


def intersect(lengths: list[int], accepted: list[int]) -> list[int]:
    """The lengths that both lists hold, ascending."""
    keep = set(accepted)
    return [length for length in lengths if length in keep]
