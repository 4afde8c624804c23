"""The colours that our image tasks show and ask for.

They differ so much from each other and from grey that they can be recognised after noise, JPEG and resizing. In the
tokenizer that we ship, each name is one token, with or without a space before it.
"""

from collections.abc import Mapping
from types import MappingProxyType

RGB = tuple[int, int, int]

PALETTE: Mapping[str, RGB] = MappingProxyType(
    {
        "red": (215, 25, 30),
        "green": (25, 160, 55),
        "blue": (35, 60, 225),
        "yellow": (240, 220, 35),
        "cyan": (30, 215, 220),
        "magenta": (230, 45, 205),
        "orange": (245, 135, 15),
        "purple": (115, 30, 155),
    }
)
