"""Stores which tensors belong to a hash, so that the same hash with other tensors can be refused.

The hash of a reference is checked with the image's bytes. The hash of serialised tensors cannot be checked, so it
belongs to the first tensors that had it. A hash can be removed without harm, because the engine names an item by the
digest of its tensors.
"""

from collections import OrderedDict

_MAX_HASHES = 65_536


class HashRegistry:
    """Stores the tensor digests of the most recently used hashes."""

    def __init__(self) -> None:
        self._digests: OrderedDict[str, str] = OrderedDict()

    def record(self, mm_hash: str, tensor_digest: str) -> None:
        """Record that the hash belongs to these tensors, even if it belonged to others before."""
        self._digests[mm_hash] = tensor_digest
        self._digests.move_to_end(mm_hash)
        if len(self._digests) > _MAX_HASHES:
            self._digests.popitem(last=False)

    def try_record(self, mm_hash: str, tensor_digest: str) -> bool:
        """Record a hash that cannot be checked. Return False, and do not record it, if it belongs to other tensors."""
        recorded_digest = self._digests.get(mm_hash)
        if recorded_digest not in (None, tensor_digest):
            return False
        self.record(mm_hash, tensor_digest)
        return True
