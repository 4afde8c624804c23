"""Which images a run accepts, and where it stores them."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from renderers_adapter.decoding_memory import DEFAULT_DECODING_MEMORY
from rollout.config.image_limits import (
    DEFAULT_MAX_IMAGE_BYTES,
    DEFAULT_MAX_PIXELS,
    ENGINE_MAX_PIXELS,
    MAX_IMAGE_BYTES,
)
from rollout.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Limits on one image.

    Attributes:
        max_bytes: the most bytes of the encoded image.
        max_pixels: the most pixels, width times height; no engine takes more than 178,956,970.
        max_side: the longest side in pixels.
        max_aspect: the largest ratio of the longer side to the shorter.
    """

    max_bytes: int = DEFAULT_MAX_IMAGE_BYTES
    max_pixels: int = DEFAULT_MAX_PIXELS
    max_side: int = 65_535
    max_aspect: float = 1_000.0

    def __post_init__(self) -> None:
        if self.max_pixels > ENGINE_MAX_PIXELS:
            raise ConfigurationError(
                f"max_pixels {self.max_pixels} is more than {ENGINE_MAX_PIXELS}, which no engine takes; set it lower"
            )


WIDEST_LIMITS = ImageLimits(max_bytes=MAX_IMAGE_BYTES, max_pixels=ENGINE_MAX_PIXELS)
"""For engines and trainers, which read what a worker accepted under the limits of its run, whatever these are."""

_DEFAULTS = ImageLimits()


@dataclass(frozen=True, slots=True)
class ImagePolicy:
    """The settings for the images of a whole run.

    Attributes:
        mode: `offload` moves every image to a file in `directory`; `inline` keeps images in messages, as `data:` URIs.
        directory: the run's image directory; the engine and the trainer must see it under the same path.
        allow: other directories that `file://` URLs may name; a file from there is copied into `directory`.
        max_bytes: the most bytes of one encoded image.
        max_pixels: the most pixels of one image.
        max_side: the longest side of one image, in pixels.
        max_aspect: the largest ratio of an image's longer side to its shorter.
        memory: the most bytes of memory for decoding images, in one process.
        fsync: whether a file is synced to the disk before it gets its name.
        limits: the four limits above as one object, for `inspect_image`.
    """

    mode: Literal["offload", "inline"]
    directory: Path
    allow: tuple[Path, ...] = ()
    max_bytes: int = _DEFAULTS.max_bytes
    max_pixels: int = _DEFAULTS.max_pixels
    max_side: int = _DEFAULTS.max_side
    max_aspect: float = _DEFAULTS.max_aspect
    memory: int = DEFAULT_DECODING_MEMORY
    fsync: bool = False

    limits: ImageLimits = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Made absolute here, so that a later change of the working directory has no effect.
        object.__setattr__(self, "directory", Path(os.path.abspath(self.directory)))
        object.__setattr__(self, "allow", tuple(Path(os.path.abspath(path)) for path in self.allow))
        limits = ImageLimits(self.max_bytes, self.max_pixels, self.max_side, self.max_aspect)
        object.__setattr__(self, "limits", limits)


def describe_too_many_bytes(found: int, allowed: int) -> str:
    """Return the end of an error about an image that has more bytes than the run accepts."""
    return f"{found:,} bytes, and images.max_bytes allows {allowed:,}: make it smaller, or raise the key"


def describe_too_many_pixels(found: int, allowed: int) -> str:
    """Return the end of an error about an image that has more pixels than the run accepts."""
    fix = ", or raise the key" if allowed < ENGINE_MAX_PIXELS else ""
    return f"{found:,} pixels, and images.max_pixels allows {allowed:,}: make it smaller{fix}"


def describe_too_much_memory(found: int, allowed: int, limit_name: str) -> str:
    """Return an error about an image that alone takes more memory than all may take together."""
    return (
        f"decoding the image takes {found:,} bytes of memory, and {limit_name} allows {allowed:,}: make it smaller, or"
        f" raise {limit_name}"
    )
