"""What the fuzz scripts of images share: they prepare an image, and a full decode checks the result."""

import base64
import contextlib
import hashlib
import io
import random
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image, ImageOps

from rollout.images import ImageAsset, ImageError, ImagePolicy, prepare_images
from tests.fuzz.fuzzing import fuzz

_OPERATIONS = 1_000_000
"""Pillow reads the palette of a bitmap, of up to 65,536 colours, each time it opens the file."""


def fuzz_images(description: str, make: Callable[[random.Random], str]) -> int:
    """Fuzz the preparation with the `data:` URIs from `make`; return the exit code."""
    image_attempt = _ImageAttempt()
    return fuzz(
        description,
        make,
        image_attempt.prepare,
        named_errors=(ImageError,),
        operations=_OPERATIONS,
        around=image_attempt.opened,
    )


class _ImageAttempt:
    """Prepares images inline, in a temporary directory, while its context is open."""

    def __init__(self) -> None:
        self._policy: ImagePolicy | None = None

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """A context for all attempts of a script."""
        with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._policy = ImagePolicy(mode="inline", directory=Path(directory))
            yield

    def prepare(self, uri: str) -> str:
        """Prepare the image of a `data:` URI.

        Raises:
            ImageError: the image is refused.
            AssertionError: a full decode by Pillow does not confirm the result.
        """
        assert self._policy is not None
        message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": uri}}]}
        (image,) = prepare_images([message], self._policy).images
        _confirm(image.asset, base64.b64decode(uri.partition(",")[2], validate=True))
        return "accepted, and confirmed by a full decode"


def _confirm(image: ImageAsset, data: bytes) -> None:
    assert hashlib.sha256(data).hexdigest() == image.sha256
    assert len(data) == image.n_bytes
    assert image.url == f"data:{image.media_type};base64,{base64.b64encode(data).decode()}"
    decoded: Image.Image = Image.open(io.BytesIO(data))
    decoded.load()
    with contextlib.suppress(Exception):
        decoded = ImageOps.exif_transpose(decoded)
    prepared, found = (image.width, image.height), decoded.size
    assert prepared == found, f"prepared as {prepared}, decodes to {found}"
