"""Defines the grammar of images in `data:` URIs, for all programs that read them.

    data:image/<type>;base64,<base64>

Parameters such as `;charset=utf-8` between the type and `;base64` are allowed and ignored. Workers do not write such
parameters.
"""

import re

_WORD = r"[A-Za-z0-9.+_-]{1,64}"
_HEADER = re.compile(rf"data:image/{_WORD}(?:;{_WORD}=[A-Za-z0-9.+_%-]{{0,64}}){{0,8}};base64,")


def find_data_uri_payload(uri: str) -> int | None:
    """Return the position at which the base64 begins; None if `uri` is not a `data:` URI of an image."""
    header = _HEADER.match(uri)
    return None if header is None else header.end()
