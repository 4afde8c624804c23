"""Remembers which data a hash belongs to, so that the same hash with other data is refused.

The hash of a reference is checked with the image's bytes. The hash of serialised tensors cannot be checked, so it
belongs to the first data that came with it. Forgetting a hash does no harm, because the engine's name for an item is
the digest of its tensors.
"""

from collections import OrderedDict

_MAX_HASHES = 65_536


class HashRegistry:
    """The tensor digests of the last hashes."""

    def __init__(self) -> None:
        self._digests: OrderedDict[str, str] = OrderedDict()

    def record(self, mm_hash: str, tensor_digest: str) -> None:
        """Record that the hash belongs to this data, even if it had other data before."""
        self._digests[mm_hash] = tensor_digest
        self._digests.move_to_end(mm_hash)
        if len(self._digests) > _MAX_HASHES:
            self._digests.popitem(last=False)

    def try_record(self, mm_hash: str, tensor_digest: str) -> bool:
        """Record a hash that cannot be checked; return False if it already belongs to other data."""
        recorded_digest = self._digests.get(mm_hash)
        if recorded_digest not in (None, tensor_digest):
            return False
        self.record(mm_hash, tensor_digest)
        return True
