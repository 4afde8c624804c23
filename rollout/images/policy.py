"""The settings for a run's images: which images it accepts, and where it stores them."""

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
    """The limits on a single image.

    Attributes:
        max_bytes: the maximum size of the encoded image, in bytes.
        max_pixels: the maximum of width times height. No engine accepts more than 178,956,970 pixels.
        max_side: the maximum width and height, in pixels.
        max_aspect: the maximum ratio of the longer side to the shorter side.
    """

    max_bytes: int = DEFAULT_MAX_IMAGE_BYTES
    max_pixels: int = DEFAULT_MAX_PIXELS
    max_side: int = 65_535
    max_aspect: float = 1_000.0

    def __post_init__(self) -> None:
        if self.max_pixels > ENGINE_MAX_PIXELS:
            raise ConfigurationError(
                f"max_pixels {self.max_pixels} is more than {ENGINE_MAX_PIXELS}, the limit of all engines; set it lower"
            )


WIDEST_LIMITS = ImageLimits(max_bytes=MAX_IMAGE_BYTES, max_pixels=ENGINE_MAX_PIXELS)
"""The limits for engines and trainers, which must read every image that a worker accepted."""

_DEFAULTS = ImageLimits()


@dataclass(frozen=True, slots=True)
class ImagePolicy:
    """The settings for the images of a whole run.

    Attributes:
        mode: `offload` moves every image to a file in `directory`; `inline` keeps images in messages, as `data:` URIs.
        directory: the run's image directory; the engine and the trainer must see it under the same path.
        allow: other directories that `file://` URLs may name; a file from there is copied into `directory`.
        max_bytes: the maximum size of one encoded image, in bytes.
        max_pixels: the maximum number of pixels of one image.
        max_side: the maximum width and height of one image, in pixels.
        max_aspect: the maximum ratio of an image's longer side to its shorter side.
        memory: the memory that one process may use for decoding images, in bytes.
        fsync: whether a new file is synced to the disk before it gets its final name.
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
        # Make the paths absolute now, so that a later change of the working directory has no effect.
        object.__setattr__(self, "directory", Path(os.path.abspath(self.directory)))
        object.__setattr__(self, "allow", tuple(Path(os.path.abspath(path)) for path in self.allow))
        limits = ImageLimits(self.max_bytes, self.max_pixels, self.max_side, self.max_aspect)
        object.__setattr__(self, "limits", limits)


def describe_too_many_bytes(found: int, allowed: int) -> str:
    """Return the end of an error text about an image with more bytes than the run accepts."""
    return (
        f"{found:,} bytes, but images.max_bytes allows {allowed:,}; make the image smaller, or raise images.max_bytes"
    )


def describe_too_many_pixels(found: int, allowed: int) -> str:
    """Return the end of an error text about an image with more pixels than the run accepts."""
    fix = ", or raise images.max_pixels" if allowed < ENGINE_MAX_PIXELS else ""
    return f"{found:,} pixels, but images.max_pixels allows {allowed:,}; make the image smaller{fix}"


def describe_too_much_memory(found: int, allowed: int, limit_name: str) -> str:
    """Return the error text for an image that alone needs more memory than the limit for all images together."""
    return (
        f"decoding the image takes {found:,} bytes of memory, but {limit_name} allows {allowed:,}; make the image "
        f"smaller, or raise {limit_name}"
    )
