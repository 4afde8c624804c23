"""The division of samples among ranks: the heaviest rank is light, and no rank has more rows than this needs."""

from collections.abc import Callable, Iterator, Sequence
from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from rollout.trainer.ranks.balancing import balance, balance_rows

UNEQUAL = st.one_of(st.integers(1, 20), st.integers(100, 120), st.integers(1, 1000))

HEAVY_TAIL = st.floats(0.001, 1).map(lambda share: min(32_768, int(50 / share**1.1)))
Divide = Callable[[Sequence[int], int], list[list[int]]]


def heaviest(lengths: Sequence[int], shares: Sequence[Sequence[int]]) -> int:
    return max(sum(lengths[at] for at in share) for share in shares)


def bound(lengths: Sequence[int], ranks: int) -> float:
    return max(1.15 * sum(lengths) / ranks, max(lengths, default=0))


def all_divisions(lengths: Sequence[int], ranks: int) -> Iterator[list[list[int]]]:
    for owners in product(range(ranks), repeat=len(lengths)):
        yield [[at for at, owner in enumerate(owners) if owner == rank] for rank in range(ranks)]


def most_items(shares: Sequence[Sequence[int]]) -> int:
    return max(map(len, shares))


@given(st.lists(UNEQUAL, max_size=60), st.integers(1, 9), st.sampled_from([balance, balance_rows]))
def test_each_item_has_one_rank(lengths: list[int], ranks: int, divide: Divide) -> None:
    shares = divide(lengths, ranks)
    assert sorted(at for share in shares for at in share) == list(range(len(lengths)))
    assert len(shares) == ranks


@given(st.lists(UNEQUAL, max_size=7), st.integers(1, 3), st.sampled_from([balance, balance_rows]))
def test_a_small_case_keeps_the_bound_if_any_division_does(lengths: list[int], ranks: int, divide: Divide) -> None:
    found = heaviest(lengths, divide(lengths, ranks))
    optimum = min(heaviest(lengths, shares) for shares in all_divisions(lengths, ranks))
    assert optimum <= found
    if optimum <= bound(lengths, ranks):
        assert found <= bound(lengths, ranks)


@given(st.lists(UNEQUAL, max_size=7), st.integers(1, 3))
def test_no_smaller_number_of_rows_keeps_the_bound_in_a_small_case(lengths: list[int], ranks: int) -> None:
    shares = balance_rows(lengths, ranks)
    limit = max(bound(lengths, ranks), heaviest(lengths, shares))
    fewest = min(most_items(other) for other in all_divisions(lengths, ranks) if heaviest(lengths, other) <= limit)
    assert most_items(shares) == fewest


@given(st.integers(2, 8).flatmap(lambda ranks: st.tuples(st.just(ranks), st.lists(HEAVY_TAIL, min_size=8 * ranks))))
def test_rows_of_a_heavy_tail_are_as_balanced_as_packed_ones(case: tuple[int, list[int]]) -> None:
    ranks, lengths = case
    packed = heaviest(lengths, balance(lengths, ranks))
    assert heaviest(lengths, balance_rows(lengths, ranks)) <= max(bound(lengths, ranks), packed)


@given(st.integers(2, 8).flatmap(lambda ranks: st.tuples(st.just(ranks), st.lists(UNEQUAL, min_size=8 * ranks))))
def test_many_items_keep_the_bound(case: tuple[int, list[int]]) -> None:
    ranks, lengths = case
    assert heaviest(lengths, balance(lengths, ranks)) <= bound(lengths, ranks)


@given(st.lists(st.integers(1, 50), min_size=2, max_size=20), st.integers(2, 4))
def test_a_perfect_division_that_longest_first_misses_is_within_the_bound(half: list[int], ranks: int) -> None:
    lengths = half * ranks  # every rank can have the same items
    assert heaviest(lengths, balance(lengths, ranks)) <= bound(lengths, ranks)


def test_swaps_make_two_ranks_equal() -> None:
    assert heaviest([3, 3, 2, 2, 2], balance([3, 3, 2, 2, 2], 2)) == 6


def test_ranks_without_items_have_empty_shares() -> None:
    assert balance([5], 3) == [[0], [], []]


def test_equal_items_have_equally_many_rows() -> None:
    assert [len(share) for share in balance_rows([100] * 12, 4)] == [3] * 4


def test_a_light_rank_has_more_rows_if_the_balance_needs_it() -> None:
    lengths = [1000, *[100] * 9]
    shares = balance_rows(lengths, 2)
    assert heaviest(lengths, shares) <= bound(lengths, 2)
    assert most_items(shares) == 9
