"""One image of a request, and the check that its hash belongs to its URL.

An image's hash is its name in the engine's caches. Other bytes under the same name would give wrong answers without an
error, so the hash is compared with the URL. A `data:` URI is decoded and hashed. A file is not read: its name contains
the sha256 of its bytes, which was computed when the image was prepared.
"""

import binascii
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from renderers_adapter.data_uris import find_data_uri_payload

_HASH_PATTERN = re.compile(r"[0-9a-f]{16,128}")


@dataclass(frozen=True, slots=True, eq=False)
class ImageRef:
    """One image as the engine reads it.

    All turns of a rollout use the same object, so the image is checked once.

    Attributes:
        url: where the engine reads the image, a `data:` URI or a `file://` URL.
        hash: the image's name in the engine's caches: the first characters of the sha256 of its bytes.
        payload: the payload of its descriptor, which contains the grid that a reference needs.
        problem: the reason why the image must not be sent to an engine; None if it may be sent.
        cached_references: the references to this image for our plugin, by layout fingerprint.
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
        """Whether the image is a file. A reference to it is then short."""
        return self.url.startswith("file:")

    @property
    def content_part(self) -> Mapping[str, str]:
        """The image as an entry of `content_parts`."""
        return {"type": "image_url", "url": self.url, "uuid": self.hash}


@dataclass(frozen=True, slots=True)
class FormattedReference:
    """A reference for our plugin.

    Attributes:
        text: the line that is sent.
        token_count: the number of tokens that an image with this layout takes.
    """

    text: str
    token_count: int


def _find_problem(url: object, image_hash: str) -> str | None:
    if not isinstance(url, str) or not (url.startswith("file:///") or find_data_uri_payload(url) is not None):
        shown_url = repr(url)
        return (
            f"has the URL {shown_url[:60]}; give every image a data:image/…;base64 or file:/// URL in every request, "
            "even if the engine has cached it."
        )
    if not _HASH_PATTERN.fullmatch(image_hash):
        return f"has the hash {image_hash!r}, which is not lower-case hex."
    url_hash = _hash_in_url(url)
    if url_hash is None or not url_hash.startswith(image_hash):
        return (
            f"has the hash {image_hash}, but the hash of its URL {url[:80]!r} is {url_hash or 'unknown'}. The engine "
            "could answer for the wrong image."
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
