"""What Roman numbers stand for."""

import unittest

from roman import parse


class ParseTests(unittest.TestCase):
    """Numbers and their values."""

    def test_letters_are_added(self) -> None:
        """Letters in falling order are added."""
        self.assertEqual(parse("MDCLXVI"), 1666)

    def test_a_letter_before_a_greater_one_is_subtracted(self) -> None:
        """IV is four."""
        self.assertEqual(parse("XIV"), 14)
