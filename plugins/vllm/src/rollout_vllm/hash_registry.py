"""Remembers the data that a hash was first seen with; the same hash with other data is refused.

The hash of a reference is checked against its bytes. Nothing can check the hash of serialised tensors, so it names the
first data that came with it. A forgotten hash does no harm, because the engine knows an item by the digest of its
tensors.
"""

from collections import OrderedDict

_MAX_HASHES = 65_536


class HashRegistry:
    """Remembers the tensor digest of recent hashes."""

    def __init__(self) -> None:
        self._digests: OrderedDict[str, str] = OrderedDict()

    def record(self, mm_hash: str, tensor_digest: str) -> None:
        """Note that the hash names this data, whatever was recorded before."""
        self._digests[mm_hash] = tensor_digest
        self._digests.move_to_end(mm_hash)
        if len(self._digests) > _MAX_HASHES:
            self._digests.popitem(last=False)

    def try_record(self, mm_hash: str, tensor_digest: str) -> bool:
        """Record a hash that cannot be checked; False if it already names other data."""
        recorded_digest = self._digests.get(mm_hash)
        if recorded_digest not in (None, tensor_digest):
            return False
        self.record(mm_hash, tensor_digest)
        return True
