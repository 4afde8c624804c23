"""What versions of the policy are called, whether one will do where another is asked for, and how it takes over.

A version is named by the number that its name ends with. Two kinds of names have none, and satisfy nothing but
themselves: that of an engine which nobody has told its version yet, and that of one whose weights are being replaced.
"""

import re
from typing import Literal

OnUpdate = Literal["keep", "wait", "abort"]
"""What becomes of requests in flight: they go on with the new weights, they finish first, or they are begun anew."""

_TRAILING_NUMBER = re.compile(r"\d+$")


def version_number(version: str) -> int | None:
    """The number that a version's name ends with: 7 of "7", "step-7" and "weights/v0007"."""
    match = _TRAILING_NUMBER.search(version)
    return int(match[0]) if match else None


def loading_version(version: str) -> str:
    """What an engine's weights are called while they are replaced by those of `version`: the name of no version."""
    return f"{version}-loading"


def version_satisfies(actual: str | None, required: str) -> bool:
    """Whether weights of the version `actual` will do where `required` is asked for: the same one, or a newer one."""
    if actual is None or actual == required:
        return actual is not None
    actual_number, required_number = version_number(actual), version_number(required)
    return actual_number is not None and required_number is not None and actual_number >= required_number
