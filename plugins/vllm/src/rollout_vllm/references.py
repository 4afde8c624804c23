"""What a reference claims, held against what this server knows before it reads anything."""

from dataclasses import dataclass

from .contract.geometry import GeometryError
from .contract.refs import RawMMRef, RefError, parse_ref
from .errors import InvalidImageRef
from .image_config import ServerFacts
from .image_items import Item

_PREFIX = "mmraw:"
_ANY_ENGINE = "image"


@dataclass(frozen=True, slots=True)
class Claim:
    """A reference that could be true: only its image can tell."""

    where: str
    ref: RawMMRef
    grid: tuple[int, int, int]


def is_reference(item: Item) -> bool:
    """Whether the item is a reference; serialised tensors are base64, which has no colon."""
    return item.data.startswith(_PREFIX)


def read_claim(item: Item, facts: ServerFacts) -> Claim:
    """Read the reference of an item.

    Raises:
        InvalidImageRef: it is malformed, contradicts its request, or was made for another kind of server.
    """
    try:
        ref = parse_ref(item.data)
        grid = _grid(ref, item, facts)
    except (RefError, GeometryError) as error:
        raise InvalidImageRef(str(error), item.where) from error
    except InvalidImageRef as error:
        raise error.at(item.where) from error
    return Claim(item.where, ref, grid)


def _grid(ref: RawMMRef, item: Item, facts: ServerFacts) -> tuple[int, int, int]:
    geometry = facts.geometry
    # A descriptor says `image` for every family; on the wire the engine's own name may stand in its place.
    if ref.modality not in (_ANY_ENGINE, facts.modality):
        raise InvalidImageRef(f"the reference is of the modality {ref.modality!r}, its item of {facts.modality!r}")
    if ref.mm_hash != item.hash:
        raise InvalidImageRef(f"the reference is of the image {ref.mm_hash}, mm_hashes says {item.hash[:128]!r}")
    if ref.family != geometry.family:
        raise InvalidImageRef(f"the reference is for the family {ref.family!r}, this server's is {geometry.family!r}")
    if ref.fingerprint != geometry.fingerprint:
        raise InvalidImageRef(
            f"the reference has the layout fingerprint {ref.fingerprint}, this server's processor has"
            f" {geometry.fingerprint}; both sides need the same processor configuration"
        )
    grid = geometry.grid(ref.payload)
    tokens = geometry.tokens(grid)
    if tokens != item.length:
        raise InvalidImageRef(f"the grid {list(grid)} takes {tokens} tokens, the placeholder range has {item.length}")
    return grid
