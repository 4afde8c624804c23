"""Describes the sign over the door of a shop."""

COLOR = "grey"


def describe() -> str:
    """Return a sentence about the sign."""
    return f"Look for the {COLOR} sign."
