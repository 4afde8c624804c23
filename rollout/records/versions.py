"""Reads the names of policy versions, and decides whether a version is at least as new as a required one.

The number of a version is the number at the end of its name. A version without a number satisfies only a request for
exactly this name. An engine has such a name until it knows its version, and while its weights are replaced.
"""

from typing import Literal

OnUpdate = Literal["keep", "wait", "abort"]
"""What happens to requests that run during an update of the weights.

`keep`: they continue with the new weights. `wait`: the update waits until they end. `abort`: they start again.
"""

_DIGITS = "0123456789"
_MAX_DIGITS = 18
"""The maximum number of digits of a version's number, so that the number fits into 64 bits."""


def version_number(version: str) -> int | None:
    """Return the number at the end of a version's name: 7 for "7", "step-7" and "weights/v0007"; None without one."""
    digits = version[len(version.rstrip(_DIGITS)) :]
    return int(digits) if 1 <= len(digits) <= _MAX_DIGITS else None


def loading_version(version: str) -> str:
    """Return the name of an engine's weights while it loads `version`. No real version has this name."""
    return f"{version}-loading"


def version_satisfies(actual: str | None, required: str) -> bool:
    """Whether `actual` is the required version or a newer one; False if `actual` is None, which means unknown."""
    if actual is None or actual == required:
        return actual is not None
    actual_number, required_number = version_number(actual), version_number(required)
    return actual_number is not None and required_number is not None and actual_number >= required_number
