"""The names of the policy's versions, and whether one version satisfies the request for another.

The number of a version is the number at the end of its name. A name without a number satisfies only itself. Engines
have such a name while they do not know their version yet, and while their weights are replaced.
"""

from typing import Literal

OnUpdate = Literal["keep", "wait", "abort"]
"""What happens to running requests at an update: they continue with the new weights, finish first, or start again."""

_DIGITS = "0123456789"
_MAX_DIGITS = 18
"""The most digits of a version's number, so that it fits into 64 bits."""


def version_number(version: str) -> int | None:
    """Return the number at the end of a version's name: 7 for "7", "step-7" and "weights/v0007"; None without one."""
    digits = version[len(version.rstrip(_DIGITS)) :]
    return int(digits) if 1 <= len(digits) <= _MAX_DIGITS else None


def loading_version(version: str) -> str:
    """Return the name of an engine's weights while those of `version` replace them; no version has this name."""
    return f"{version}-loading"


def version_satisfies(actual: str | None, required: str) -> bool:
    """Return whether `actual` is the required version or a newer one; never if it is None, which is unknown."""
    if actual is None or actual == required:
        return actual is not None
    actual_number, required_number = version_number(actual), version_number(required)
    return actual_number is not None and required_number is not None and actual_number >= required_number
