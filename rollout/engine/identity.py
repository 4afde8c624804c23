"""An image's hash is its name in the engine's caches: other bytes under a known name give silently wrong answers.

So each reference is checked once against what it points to. A `data:` URI is decoded and hashed; a `file://` URL names
an asset by the sha256 of its bytes, which was computed from those bytes when the image was prepared.
"""

import binascii
import hashlib
from collections import OrderedDict
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from rollout.engine.errors import RequestRefusedLocally
from rollout.engine.protocol import GenerateRequest, ImageRef

_REMEMBERED = 65_536


class ImageIdentities:
    """Remembers which references were found right, by hash and by the hash of the URL's text, not by the text."""

    def __init__(self) -> None:
        self._right: OrderedDict[tuple[str, int], None] = OrderedDict()

    def require(self, request: GenerateRequest) -> None:
        """Raises RequestRefusedLocally: a reference points to other bytes than its hash names."""
        for index, image in enumerate(request.images):
            key = (image.hash, hash(image.url))
            if key in self._right:
                self._right.move_to_end(key)
                continue
            named = _named(image)
            if named is None or not named.startswith(image.hash):
                raise RequestRefusedLocally(
                    f"{request.request_id}: image {index} is called {image.hash}, but its reference "
                    f"{image.url[:80]!r} stands for {named or 'no image'}. The engine would answer for the wrong image."
                )
            self._right[key] = None
            if len(self._right) > _REMEMBERED:
                self._right.popitem(last=False)


def _named(image: ImageRef) -> str | None:
    if image.url.startswith("file:"):
        return PurePosixPath(urlsplit(image.url).path).stem
    try:
        data = binascii.a2b_base64(image.url.partition(",")[2], strict_mode=True)
    except ValueError:
        return None
    return hashlib.sha256(data).hexdigest()
