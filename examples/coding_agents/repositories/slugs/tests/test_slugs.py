"""What the names for addresses look like."""

import unittest

from slugs import make_slug


class SlugTests(unittest.TestCase):
    """Titles and their names."""

    def test_words_are_joined_by_hyphens(self) -> None:
        """Spaces become hyphens."""
        self.assertEqual(make_slug("Three small birds"), "three-small-birds")

    def test_several_signs_become_one_hyphen(self) -> None:
        """Two signs do not make two hyphens."""
        self.assertEqual(make_slug("Birds & bees, again"), "birds-bees-again")

    def test_a_name_has_no_hyphen_at_its_ends(self) -> None:
        """Signs at the ends are left out."""
        self.assertEqual(make_slug("  (Birds!)"), "birds")
