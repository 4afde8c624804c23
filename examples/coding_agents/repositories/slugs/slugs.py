"""Makes names for addresses out of titles."""

import re


def make_slug(title: str) -> str:
    """Return a title in lower case, with one hyphen in the place of everything that is no letter and no digit."""
    return re.sub(r"[^a-z0-9]", "-", title.lower()).strip("-")
