"""Limits on one image: the defaults of a run, and the most that a run may allow."""

DEFAULT_MAX_IMAGE_BYTES = 20_000_000
MAX_IMAGE_BYTES = 1 << 30
"""Engines that we ship and trainers read images up to this size, so that a run must not accept larger ones."""

DEFAULT_MAX_PIXELS = 1 << 25
"""More than a photo of 24 megapixels or a screen of 8K; an image processor keeps half of them at most."""
ENGINE_MAX_PIXELS = 178_956_970
"""The largest width times height that an engine takes."""
