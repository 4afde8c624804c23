"""The division of samples among ranks: the heaviest rank is light, and no rank has too many samples."""

from collections.abc import Sequence
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.trainer.ranks.balancing import balance

UNEQUAL = st.one_of(st.integers(1, 20), st.integers(100, 120), st.integers(1, 1000))


def heaviest(lengths: Sequence[int], shares: Sequence[Sequence[int]]) -> int:
    return max(sum(lengths[at] for at in share) for share in shares)


def bound(lengths: Sequence[int], ranks: int) -> float:
    return max(1.15 * sum(lengths) / ranks, max(lengths, default=0))


def smallest_heaviest(lengths: Sequence[int], ranks: int, max_items: int) -> int:
    """Try all divisions."""
    best = sum(lengths)
    for owners in product(range(ranks), repeat=len(lengths)):
        shares = [[at for at, owner in enumerate(owners) if owner == rank] for rank in range(ranks)]
        if max(map(len, shares)) <= max_items:
            best = min(best, heaviest(lengths, shares))
    return best


@given(st.lists(UNEQUAL, max_size=60), st.integers(1, 9), st.booleans())
def test_each_item_has_one_rank_and_no_rank_has_too_many_items(lengths: list[int], ranks: int, limited: bool) -> None:
    max_items = -(-len(lengths) // ranks) if limited else None
    shares = balance(lengths, ranks, max_items=max_items)
    assert sorted(at for share in shares for at in share) == list(range(len(lengths)))
    assert len(shares) == ranks
    assert all(len(share) <= (len(lengths) if max_items is None else max_items) for share in shares)


@given(st.lists(UNEQUAL, max_size=7), st.integers(1, 3), st.booleans())
def test_a_small_case_keeps_the_bound_if_any_division_does(lengths: list[int], ranks: int, limited: bool) -> None:
    max_items = -(-len(lengths) // ranks) if limited else len(lengths)
    found = heaviest(lengths, balance(lengths, ranks, max_items=max_items))
    optimum = smallest_heaviest(lengths, ranks, max_items)
    assert optimum <= found
    if optimum <= bound(lengths, ranks):
        assert found <= bound(lengths, ranks)


@given(st.integers(2, 8).flatmap(lambda ranks: st.tuples(st.just(ranks), st.lists(UNEQUAL, min_size=8 * ranks))))
def test_many_items_keep_the_bound(case: tuple[int, list[int]]) -> None:
    ranks, lengths = case
    assert heaviest(lengths, balance(lengths, ranks)) <= bound(lengths, ranks)


@given(st.lists(st.integers(1, 50), min_size=2, max_size=20), st.integers(2, 4))
def test_a_perfect_division_that_longest_first_misses_is_within_the_bound(half: list[int], ranks: int) -> None:
    lengths = half * ranks  # every rank can have the same items
    found = heaviest(lengths, balance(lengths, ranks, max_items=len(half)))
    assert found <= bound(lengths, ranks)


def test_swaps_make_two_ranks_equal() -> None:
    assert heaviest([3, 3, 2, 2, 2], balance([3, 3, 2, 2, 2], 2)) == 6


def test_ranks_without_items_have_empty_shares() -> None:
    assert balance([5], 3) == [[0], [], []]


def test_too_little_room_is_an_error() -> None:
    with pytest.raises(ValueError, match="5 items do not fit on 2 ranks with at most 2 items each"):
        balance([1, 1, 1, 1, 1], 2, max_items=2)
