"""The prefix arithmetic against a restatement of its definition."""

import random

import pytest
from memkv_sglang import hits

pytestmark = pytest.mark.unit


def oracle_trailing(present: list[bool], window: int) -> list[int]:
    return [p for p in range(1, len(present) + 1) if all(present[max(0, p - window) : p])]


def oracle_all(present: list[bool]) -> list[int]:
    return [p for p in range(1, len(present) + 1) if all(present[:p])]


def test_random_patterns_agree_with_the_definition() -> None:
    chance = random.Random(7)
    for _ in range(3_000):
        present = [chance.random() < chance.choice((0.3, 0.7, 0.95)) for _ in range(chance.randint(0, 12))]
        window = chance.randint(1, 14)
        assert hits.trailing_pages(present, window) == oracle_trailing(present, window), (present, window)
        assert hits.all_pages(present) == oracle_all(present), present
        assert hits.leading_run(present) == max(oracle_all(present), default=0)


def test_the_minimum_of_maxima_is_not_the_answer() -> None:
    # Restorable at 1 and 4 for one pool, at 1 and 3 for the other: the longest common prefix is 1, not 3.
    first = hits.trailing_pages([True, False, False, True], 1)
    second = hits.trailing_pages([True, False, True, False], 1)
    assert (first, second) == ([1, 4], [1, 3])
    assert hits.intersect(first, second) == [1]
