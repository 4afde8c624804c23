"""Writes shares for the summaries of runs."""


def percent(part: int, whole: int) -> str:
    """Return a share in percent; 100 and 0 only if nothing or everything is missing."""
    tenths = 1000 * part // whole if part * 2 > whole else -(-1000 * part // whole)
    return f"{tenths / 10:g} %"
