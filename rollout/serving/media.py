"""Reads the images of a request. It reads, verifies and decodes every image again, because a name proves nothing."""

import binascii
import hashlib
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from PIL import Image

from renderers_adapter.data_uris import find_data_uri_payload
from renderers_adapter.decoding_memory import DecodingMemory
from rollout.images.decoding import decoded_image
from rollout.images.errors import ImageError, ImageMemoryError
from rollout.images.policy import WIDEST_LIMITS
from rollout.serving.protocol import ContentPart, RequestRefused


class MediaReader:
    """Reads images from `data:` URIs, and from `file://` URLs inside the allowed directories."""

    def __init__(self, allowed_directories: Iterable[Path], memory: DecodingMemory) -> None:
        self._memory = memory
        self._allowed_directories = tuple(directory.resolve() for directory in allowed_directories)

    def read(self, index: int, part: ContentPart) -> Image.Image:
        """Return the decoded image of `content_parts[index]`.

        Raises:
            RequestRefused: the image cannot be read or decoded, may not be read, or is not the image that its uuid
                names.
        """
        param = f"content_parts[{index}]"
        data = self._read_bytes(f"{param}.url", part.url)
        mm_hash = hashlib.sha256(data).hexdigest()[:32]
        if part.uuid != mm_hash:
            raise RequestRefused(
                f"{param}.uuid is {part.uuid}, but the sha256 of the image's bytes begins with {mm_hash}; send this as "
                "its uuid, or send the right image.",
                param=f"{param}.uuid",
            )
        try:
            with decoded_image(data, WIDEST_LIMITS, self._memory) as image:
                return image
        except ImageError as error:
            raise RequestRefused(f"{param}.url: {error.reason}.", param=f"{param}.url") from error
        except ImageMemoryError as error:
            raise RequestRefused(f"{param}.url: {error}.", param=f"{param}.url", status=503) from error

    def _read_bytes(self, param: str, url: str) -> bytes:
        scheme = url.partition(":")[0].lower()
        if scheme == "data":
            return _decode_data_uri(param, url)
        if scheme == "file":
            return self._read_file(param, url)
        raise RequestRefused(f"{param} has the scheme {scheme[:20]!r}; only data: and file: are allowed.", param=param)

    def _read_file(self, param: str, url: str) -> bytes:
        url_parts = urlsplit(url)
        if url_parts.netloc not in ("", "localhost"):
            raise RequestRefused(f"{param} has the host {url_parts.netloc!r}; write file:///….", param=param)
        try:
            path = Path(unquote(url_parts.path)).resolve()
        except (OSError, RuntimeError, ValueError):
            raise _outside_allowed_error(param) from None
        # This check comes first, so that a client cannot find out which files exist elsewhere.
        if not any(path.is_relative_to(directory) for directory in self._allowed_directories):
            raise _outside_allowed_error(param)
        if not path.is_file():
            raise RequestRefused(f"{param}: there is no file {path.name}.", param=param)
        try:
            return path.read_bytes()
        except OSError as error:
            raise RequestRefused(f"{param}: {path.name} cannot be read ({error.strerror}).", param=param) from error


def _outside_allowed_error(param: str) -> RequestRefused:
    return RequestRefused(f"{param} is outside the directories from which this engine may read images.", param=param)


def _decode_data_uri(param: str, url: str) -> bytes:
    payload = find_data_uri_payload(url)
    if payload is None:
        raise RequestRefused(f"{param} begins with {url[:40]!r}; expected data:image/…;base64,…", param=param)
    encoded = url[payload:]
    try:
        # Python's strict mode accepts padding where none is needed.
        if len(encoded) % 4 or encoded.endswith("==="):
            raise ValueError("wrong padding")
        return binascii.a2b_base64(encoded, strict_mode=True)
    except ValueError as error:
        raise RequestRefused(f"{param} is not valid base64: {error}.", param=param) from error
