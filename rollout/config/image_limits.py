"""The limits on one image: the default values of a run, and the highest values that a run may set."""

DEFAULT_MAX_IMAGE_BYTES = 20_000_000
MAX_IMAGE_BYTES = 1 << 30
"""A run must not accept larger images, because our own engines and trainers do not read them."""

DEFAULT_MAX_PIXELS = 1 << 25
"""Enough for a photo of 24 megapixels or a screen of 8K. Image processors scale images down to half of it or less."""
ENGINE_MAX_PIXELS = 178_956_970
"""An engine refuses an image with more pixels."""
