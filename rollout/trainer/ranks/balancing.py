"""Divides samples among ranks, so that the rank with the most tokens has few more than the others."""

import bisect
from collections.abc import Sequence

_TOLERANCE = 1.15
"""The tokens of the heaviest rank, divided by the mean, that are good enough."""
_MAX_SEARCH_STEPS = 20_000


def balance(lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """Return for each rank the indices of its items; the heaviest rank is as light as a short search finds.

    The heaviest rank has at most 1.15 times the mean, or the longest item, if that is possible. For many items on many
    ranks, the search for such a division may give up earlier. The result depends only on the arguments.

    Args:
        lengths: the tokens of each item.
        ranks: the number of ranks.
    """
    return _divide(lengths, ranks, len(lengths), _bound(lengths, ranks))


def balance_rows(lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """Do the same as `balance`, and give the rank with the most items as few as this allows.

    A batch without packing has a row for each item, and all ranks must have equally many rows. So the fewest rows are
    the smallest batch that keeps the balance.
    """
    best = balance(lengths, ranks)
    bound = max(_bound(lengths, ranks), _heaviest(lengths, best))
    fewest = -(-len(lengths) // ranks)
    while fewest < (most := max(map(len, best))):
        room = (fewest + most) // 2
        shares = _divide(lengths, ranks, room, bound)
        if _heaviest(lengths, shares) <= bound:
            best = shares
        else:
            fewest = room + 1
    return best


def _divide(lengths: Sequence[int], ranks: int, room: int, bound: float) -> list[list[int]]:
    """Give each rank at most `room` items. No rank is above the bound if a short search finds such a division."""
    division = _Division(lengths, ranks, room)
    division.improve()
    if max(division.loads, default=0) > bound and (found := _search(lengths, ranks, room, bound)) is not None:
        return found
    return [sorted(index for _, index in items) for items in division.items]


def _bound(lengths: Sequence[int], ranks: int) -> float:
    return max(_TOLERANCE * sum(lengths) / ranks, max(lengths, default=0))


def _heaviest(lengths: Sequence[int], shares: Sequence[Sequence[int]]) -> int:
    return max(sum(lengths[at] for at in share) for share in shares)


class _Division:
    """Gives the longest item first, each to the rank with the fewest tokens, and then improves the result."""

    def __init__(self, lengths: Sequence[int], ranks: int, room: int) -> None:
        self._room = room
        self.loads = [0] * ranks
        self.items: list[list[tuple[int, int]]] = [[] for _ in range(ranks)]
        """For each rank, the length and the index of its items, in ascending order."""
        for index in _longest_first(lengths):
            rank = min(
                (rank for rank in range(ranks) if len(self.items[rank]) < room),
                key=lambda rank: (self.loads[rank], len(self.items[rank]), rank),
            )
            self._add(rank, (lengths[index], index))

    def improve(self) -> None:
        """Move items away from the heaviest rank, or swap them, while this makes the heaviest rank lighter."""
        for _ in range(_MAX_SEARCH_STEPS):
            heaviest = max(range(len(self.loads)), key=self.loads.__getitem__)
            if not any(
                self._relieve(heaviest, other)
                for other in sorted(range(len(self.loads)), key=self.loads.__getitem__)
                if self.loads[other] < self.loads[heaviest] - 1
            ):
                return

    def _relieve(self, heavy: int, light: int) -> bool:
        """Make the best move or swap between two ranks; return False if none makes the heavier of them lighter."""
        gap = self.loads[heavy] - self.loads[light]
        best: tuple[float, tuple[int, int], tuple[int, int] | None] | None = None
        for given in self.items[heavy]:
            candidates: list[tuple[int, int] | None] = [None] if len(self.items[light]) < self._room else []
            # The best swap moves half of the gap.
            place = bisect.bisect_left(self.items[light], (given[0] - gap // 2, -1))
            candidates += self.items[light][max(0, place - 1) : place + 1]
            for taken in candidates:
                moved = given[0] - (taken[0] if taken else 0)
                if 0 < moved < gap and (best is None or abs(gap - 2 * moved) < best[0]):
                    best = abs(gap - 2 * moved), given, taken
        if best is None:
            return False
        _, given, taken = best
        self._remove(heavy, given)
        self._add(light, given)
        if taken is not None:
            self._remove(light, taken)
            self._add(heavy, taken)
        return True

    def _add(self, rank: int, item: tuple[int, int]) -> None:
        bisect.insort(self.items[rank], item)
        self.loads[rank] += item[0]

    def _remove(self, rank: int, item: tuple[int, int]) -> None:
        self.items[rank].remove(item)
        self.loads[rank] -= item[0]


def _search(lengths: Sequence[int], ranks: int, room: int, bound: float) -> list[list[int]] | None:
    """Try divisions until one has no rank above the bound; None if there is none, or it takes too many steps."""
    order = _longest_first(lengths)
    loads, chosen = [0] * ranks, [[] for _ in range(ranks)]  # type: list[int], list[list[int]]
    steps_left = _MAX_SEARCH_STEPS
    tried: list[list[int]] = [[]]
    """For each item that is placed or being placed, the ranks that are still to be tried."""

    def ranks_for(index: int) -> list[int]:
        # Ranks with equal loads and equally many items are alike, so one of them is enough.
        different = {
            (loads[rank], len(chosen[rank])): rank
            for rank in range(ranks)
            if loads[rank] + lengths[index] <= bound and len(chosen[rank]) < room
        }
        return [rank for _, rank in sorted(different.items())]

    depth = 0
    tried[0] = ranks_for(order[0])
    placed: list[int] = []
    while steps_left:
        steps_left -= 1
        if tried[depth]:
            rank = tried[depth].pop()
            loads[rank] += lengths[order[depth]]
            chosen[rank].append(order[depth])
            placed.append(rank)
            depth += 1
            if depth == len(order):
                return [sorted(items) for items in chosen]
            tried.append(ranks_for(order[depth]))
        elif depth == 0:
            return None
        else:
            tried.pop()
            depth -= 1
            rank = placed.pop()
            loads[rank] -= lengths[order[depth]]
            chosen[rank].pop()
    return None


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
