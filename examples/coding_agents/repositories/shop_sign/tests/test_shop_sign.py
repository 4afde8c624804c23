"""Whether the sign is described as it looks."""

import unittest
from hashlib import sha256

from shop_sign import describe

DIGEST = "d3cb0ae94cb928df"  # so that this file does not tell the colour


class DescribeTests(unittest.TestCase):
    """The sentence about the sign."""

    def test_the_colour_is_that_of_the_picture(self) -> None:
        """The sentence has the colour of sign.png."""
        self.assertEqual(sha256(describe().encode()).hexdigest()[:16], DIGEST)
