"""Compares what a reference says with what this server knows, before it reads anything."""

from dataclasses import dataclass

from .contract.geometry import GeometryError
from .contract.refs import RawMMRef, RefError, parse_ref
from .errors import InvalidImageRef
from .image_config import ServerImageConfig
from .image_items import ImageItem

_REFERENCE_PREFIX = "mmraw:"
_GENERIC_MODALITY = "image"


@dataclass(frozen=True, slots=True)
class CheckedReference:
    """A reference that fits the request and the server; only its image can still contradict it.

    Attributes:
        param: the path of the item in the request, for error answers.
        ref: what the reference says.
        grid: the grid of patches in its payload.
    """

    param: str
    ref: RawMMRef
    grid: tuple[int, int, int]


def is_reference(item: ImageItem) -> bool:
    """Whether the item is a reference; serialised tensors are base64, which has no colon."""
    return item.data.startswith(_REFERENCE_PREFIX)


def check_reference(item: ImageItem, image_config: ServerImageConfig) -> CheckedReference:
    """Read the reference of an item.

    Raises:
        InvalidImageRef: it is malformed, contradicts its request, or was made for another kind of server.
    """
    try:
        ref = parse_ref(item.data)
        grid = _checked_grid(ref, item, image_config)
    except (RefError, GeometryError) as error:
        raise InvalidImageRef(str(error), item.param) from error
    except InvalidImageRef as error:
        raise error.for_param(item.param) from error
    return CheckedReference(item.param, ref, grid)


def _checked_grid(ref: RawMMRef, item: ImageItem, image_config: ServerImageConfig) -> tuple[int, int, int]:
    geometry = image_config.geometry
    # A descriptor says `image` for every family; a request may have the engine's own name instead.
    if ref.modality not in (_GENERIC_MODALITY, image_config.modality):
        raise InvalidImageRef(
            f"the reference is of the modality {ref.modality!r}, its item of {image_config.modality!r}"
        )
    if ref.mm_hash != item.mm_hash:
        raise InvalidImageRef(f"the reference is of the image {ref.mm_hash}, mm_hashes says {item.mm_hash[:128]!r}")
    if ref.family != geometry.family:
        raise InvalidImageRef(f"the reference is for the family {ref.family!r}, this server's is {geometry.family!r}")
    if ref.fingerprint != geometry.fingerprint:
        raise InvalidImageRef(
            f"the reference has the layout fingerprint {ref.fingerprint}, this server's processor has"
            f" {geometry.fingerprint}; both sides need the same processor configuration"
        )
    grid = geometry.grid(ref.payload)
    tokens = geometry.tokens(grid)
    if tokens != item.placeholder_length:
        raise InvalidImageRef(
            f"the grid {list(grid)} takes {tokens} tokens, the placeholder range has {item.placeholder_length}"
        )
    return grid
