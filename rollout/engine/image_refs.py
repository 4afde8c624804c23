"""One image of a request, and what is wrong with naming it so.

An image's hash is its name in the engine's caches: other bytes under a known name give silently wrong answers. So each
reference is compared with what it points to. A `data:` URI is decoded and hashed; a `file://` URL names an asset by the
sha256 of its bytes, which was computed from those bytes when the image was prepared.
"""

import binascii
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

_HASH_PATTERN = re.compile(r"[0-9a-f]{16,128}")
_URL_PATTERN = re.compile(r"data:image/[A-Za-z0-9.+-]+;base64,|file:///")


@dataclass(frozen=True, slots=True, eq=False)
class ImageRef:
    """Where the engine reads an image, the hash it is known by, and the layout that a reference of our plugin tells.

    The same object goes out with every turn of a rollout, and is compared with what it points to once.

    Attributes:
        problem: why no engine may be sent this; none: it is sound.
        cached_references: its references as they went out before, by the fingerprint of the layout that they tell.
    """

    url: str
    hash: str
    payload: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = field(init=False)
    cached_references: dict[str, "FormattedReference"] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "problem", _find_problem(self.url, self.hash))

    @property
    def is_file(self) -> bool:
        """Whether its reference is the name of a file, and short."""
        return self.url.startswith("file:")

    @property
    def content_part(self) -> Mapping[str, str]:
        """The image as an entry of `content_parts`."""
        return {"type": "image_url", "url": self.url, "uuid": self.hash}


@dataclass(frozen=True, slots=True)
class FormattedReference:
    """A reference of our plugin, and the tokens that an image of its layout takes."""

    text: str
    token_count: int


def _find_problem(url: object, image_hash: str) -> str | None:
    if not isinstance(url, str) or not _URL_PATTERN.match(url):
        shown_url = repr(url)
        return (
            f"is {shown_url[:60]}; every image needs its data:image/…;base64 or file:/// reference in every request, "
            "whatever the engine may have cached."
        )
    if not _HASH_PATTERN.fullmatch(image_hash):
        return f"has the hash {image_hash!r}, which is not lower-case hex."
    url_hash = _hash_in_url(url)
    if url_hash is None or not url_hash.startswith(image_hash):
        return (
            f"is called {image_hash}, but its reference {url[:80]!r} stands for {url_hash or 'no image'}. "
            "The engine would answer for the wrong image."
        )
    return None


def _hash_in_url(url: str) -> str | None:
    if url.startswith("file:"):
        return urlsplit(url).path.rpartition("/")[2].partition(".")[0]
    try:
        data = binascii.a2b_base64(url.partition(",")[2], strict_mode=True)
    except ValueError:
        return None
    return hashlib.sha256(data).hexdigest()
