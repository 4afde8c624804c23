"""Which data a hash was first seen with: the same hash with other data is refused.

For a reference the hash is proven by its bytes. Nothing proves the hash of serialised tensors, so there the first data
under it is what it names. What is forgotten here does no harm: the engine knows an item by what it is, not by its hash.
"""

from collections import OrderedDict

_MAX_HASHES = 65_536


class HashRegistry:
    """Remembers the identity of the data behind recent hashes."""

    def __init__(self) -> None:
        self._digests: OrderedDict[str, str] = OrderedDict()

    def record(self, mm_hash: str, tensor_digest: str) -> None:
        """The hash names this data, whatever was claimed of it before."""
        self._digests[mm_hash] = tensor_digest
        self._digests.move_to_end(mm_hash)
        if len(self._digests) > _MAX_HASHES:
            self._digests.popitem(last=False)

    def try_record(self, mm_hash: str, tensor_digest: str) -> bool:
        """Whether the hash may name this data, which nothing proves."""
        recorded_digest = self._digests.get(mm_hash)
        if recorded_digest not in (None, tensor_digest):
            return False
        self.record(mm_hash, tensor_digest)
        return True
