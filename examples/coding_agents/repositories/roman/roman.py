"""Reads Roman numbers."""

VALUES = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}


def parse(text: str) -> int:
    """Return the number that a Roman number stands for."""
    total = 0
    for letter, following in zip(text, [*text[1:], ""], strict=True):
        value = VALUES[letter]
        total += value if value >= VALUES.get(following, 0) else 0
    return total
