"""What a run accepts as an image and where it keeps it."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rollout.errors import ConfigurationError

ENGINE_MAX_PIXELS = 178_956_970


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Bounds on one image."""

    max_bytes: int = 64 * 1024 * 1024
    max_pixels: int = ENGINE_MAX_PIXELS
    max_side: int = 65_535
    max_aspect: float = 1_000.0

    def __post_init__(self) -> None:
        if self.max_pixels > ENGINE_MAX_PIXELS:
            raise ConfigurationError(
                f"max_pixels {self.max_pixels} is more than {ENGINE_MAX_PIXELS}, which no engine takes; set it lower"
            )


_DEFAULTS = ImageLimits()


@dataclass(frozen=True, slots=True)
class ImagePolicy:
    """One setting for a whole run.

    Attributes:
        mode: `offload` moves every image to a file in `directory`; `inline` leaves `data:` URIs where they are.
        directory: the run's image directory; the engine and the trainer must see it under the same path.
        allow: further directories that `file://` may name; what is found there is copied into `directory`.
        fsync: write through to the disk before a file gets its name.
        limits: the bounds alone, as inspection takes them.
    """

    mode: Literal["offload", "inline"]
    directory: Path
    allow: tuple[Path, ...] = ()
    max_bytes: int = _DEFAULTS.max_bytes
    max_pixels: int = _DEFAULTS.max_pixels
    max_side: int = _DEFAULTS.max_side
    max_aspect: float = _DEFAULTS.max_aspect
    fsync: bool = False

    limits: ImageLimits = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Absolute once, so that a later change of the working directory cannot move the run's images.
        object.__setattr__(self, "directory", Path(os.path.abspath(self.directory)))
        object.__setattr__(self, "allow", tuple(Path(os.path.abspath(path)) for path in self.allow))
        limits = ImageLimits(self.max_bytes, self.max_pixels, self.max_side, self.max_aspect)
        object.__setattr__(self, "limits", limits)
