"""Which data a hash was first seen with: the same hash with other data is refused.

For a reference the hash is proven by its bytes. Nothing proves the hash of serialised tensors, so there the first data
under it is what it names. What is forgotten here does no harm: the engine knows an item by what it is, not by its hash.
"""

from collections import OrderedDict

_REMEMBERED = 65_536


class KnownHashes:
    """Remembers the identity of the data behind recent hashes."""

    def __init__(self) -> None:
        self._identities: OrderedDict[str, str] = OrderedDict()

    def prove(self, mm_hash: str, identity: str) -> None:
        """The hash names this data, whatever was claimed of it before."""
        self._identities[mm_hash] = identity
        self._identities.move_to_end(mm_hash)
        if len(self._identities) > _REMEMBERED:
            self._identities.popitem(last=False)

    def claim(self, mm_hash: str, identity: str) -> bool:
        """Whether the hash may name this data, which nothing proves."""
        known = self._identities.get(mm_hash)
        if known not in (None, identity):
            return False
        self.prove(mm_hash, identity)
        return True
