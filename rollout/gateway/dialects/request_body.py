"""The body of a request, with hashes by which the same bytes are recognised."""

BLOCK_BYTES = 16_384


class RequestBody:
    """The body of a request.

    Attributes:
        data: the bytes as they came.
        blocks: the hash of each block. Python's hash has a secret key in each process, so nobody can choose bytes with
            a wanted hash.
    """

    __slots__ = ("blocks", "data")

    def __init__(self, data: bytes) -> None:
        """Take the bytes of a body, and compute the hashes."""
        view = memoryview(data)
        self.data = data
        self.blocks = tuple([hash(view[at : at + BLOCK_BYTES]) for at in range(0, len(data), BLOCK_BYTES)])
