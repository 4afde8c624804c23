"""What versions of the policy are called, whether one will do where another is asked for, and how it takes over.

A version is named by the number that its name ends with. Two kinds of names have none, and satisfy nothing but
themselves: that of an engine which nobody has told its version yet, and that of one whose weights are being replaced.
"""

import re
from typing import Literal

OnUpdate = Literal["keep", "wait", "abort"]
"""What becomes of requests in flight: they go on with the new weights, they finish first, or they are begun anew."""

_NUMBER = re.compile(r"\d+$")


def version_number(version: str) -> int | None:
    """The number that a version's name ends with: 7 of "7", "step-7" and "weights/v0007"."""
    found = _NUMBER.search(version)
    return int(found[0]) if found else None


def loading(version: str) -> str:
    """What an engine's weights are called while they are replaced by those of `version`: the name of no version."""
    return f"{version}-loading"


def satisfies(found: str | None, required: str) -> bool:
    """Whether weights of the version `found` will do where `required` is asked for: the same one, or a newer one."""
    if found is None or found == required:
        return found is not None
    number, least = version_number(found), version_number(required)
    return number is not None and least is not None and number >= least
