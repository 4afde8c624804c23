"""The body of a request, with hashes by which the same bytes are recognised."""

import secrets

from xxhash import xxh3_128_digest

BLOCK_BYTES = 16_384
_SEED = secrets.randbits(64)
"""Each process has another one, so that nobody can choose bytes with a wanted hash."""


def hash_bytes(data: bytes | memoryview) -> bytes:
    """Return a hash of bytes, by which this process recognises them. It is made for speed: bodies have megabytes."""
    return xxh3_128_digest(data, _SEED)


class RequestBody:
    """The body of a request.

    Attributes:
        data: the bytes as they came.
        blocks: the hash of each block.
    """

    __slots__ = ("blocks", "data")

    def __init__(self, data: bytes | bytearray) -> None:
        """Take the bytes of a body, and compute the hashes."""
        view = memoryview(data)
        self.data = data
        self.blocks = tuple([hash_bytes(view[at : at + BLOCK_BYTES]) for at in range(0, len(data), BLOCK_BYTES)])
