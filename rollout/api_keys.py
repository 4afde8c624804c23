"""Makes the API keys of endpoints, and replaces them in texts, so that no log, record or error contains one.

A program may print its environment, name a file after its key, or send the key to the policy. All keys have the same
form, so one rule finds them in any text.
"""

import os
import re

_PREFIX = "sk-rollout-"
_DIGITS = 32
_MAX_KEY_BYTES = len(_PREFIX) + _DIGITS
_SUBSTITUTE = "a-key-of-the-gateway"
_KEY = re.compile(rf"{_PREFIX}[0-9a-f]{{4,{_DIGITS}}}")
_KEY_BYTES = re.compile(_KEY.pattern.encode())
_ESCAPED_ASCII = re.compile(rb"\\u00[2-7]")
"""The escape of a character of ASCII in JSON. Clients write no such escapes for letters and digits."""


def new_key() -> str:
    """Return a new key with 128 random bits. Some clients refuse a key that does not begin with `sk-`."""
    return f"{_PREFIX}{os.urandom(_DIGITS // 2).hex()}"


def hide_keys(text: str) -> str:
    """Return a text in which every key is replaced, also one that is cut off."""
    return _KEY.sub(_SUBSTITUTE, text) if _PREFIX in text else text


def hide_keys_in_json(data: bytes) -> bytes:
    """Return JSON in which every key is replaced, also one that is written with escapes, in strings in strings, too."""
    if _PREFIX.encode() in data:
        data = _KEY_BYTES.sub(_SUBSTITUTE.encode(), data)
    if _ESCAPED_ASCII.search(data) is not None:
        data = _ESCAPED_KEY.sub(_SUBSTITUTE.encode(), data)
    return data


def contains_key(data: bytes) -> bool:
    """Whether bytes contain a key, as in the metadata of an image."""
    return _PREFIX.encode() in data and _KEY_BYTES.search(data) is not None


class KeyHider:
    """Replaces every key in bytes that arrive in blocks, also a key that is in two blocks.

    hider = KeyHider()
    for block in blocks:
        output.write(hider.hide(block))
    output.write(hider.end())
    """

    def __init__(self) -> None:
        self._kept = b""

    def hide(self, block: bytes) -> bytes:
        """Return the bytes that can be written now. At most one key's length is kept back."""
        data = self._kept + block
        certain = max(0, len(data) - _MAX_KEY_BYTES + 1)  # a key that begins before this place is complete
        for match in _KEY_BYTES.finditer(data, max(0, certain - _MAX_KEY_BYTES)):
            if match.start() >= certain:
                break
            certain = max(certain, match.end())
        self._kept = data[certain:]
        return _KEY_BYTES.sub(_SUBSTITUTE.encode(), data[:certain])

    def end(self) -> bytes:
        """Return the bytes that were kept back."""
        data, self._kept = self._kept, b""
        return _KEY_BYTES.sub(_SUBSTITUTE.encode(), data)


def _escaped(characters: str) -> str:
    """Return the pattern of one of these characters, as itself or as an escape."""
    codes = "|".join(f"{ord(character):02x}" for character in characters)
    return rf"(?:[{re.escape(characters)}]|\\+u00(?i:{codes}))"


_ESCAPED_KEY = re.compile(("".join(map(_escaped, _PREFIX)) + f"{_escaped('0123456789abcdef')}{{4,{_DIGITS}}}").encode())
