"""How intervals are joined."""

import unittest

from intervals import merge


class MergeTests(unittest.TestCase):
    """Intervals that overlap, and some that do not."""

    def test_intervals_apart_stay(self) -> None:
        """Two intervals with a gap stay two."""
        self.assertEqual(merge([(5, 6), (1, 2)]), [(1, 2), (5, 6)])

    def test_intervals_that_overlap_are_joined(self) -> None:
        """The end of the later one counts."""
        self.assertEqual(merge([(1, 4), (3, 7)]), [(1, 7)])

    def test_an_interval_inside_of_another_changes_nothing(self) -> None:
        """The end of the larger one counts."""
        self.assertEqual(merge([(1, 9), (3, 5)]), [(1, 9)])
