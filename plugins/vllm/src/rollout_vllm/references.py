"""Checks that a reference fits its request and this server, before an image is read."""

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
    """A reference that fits the request and the server; its image is not checked yet.

    Attributes:
        param: the path of the item in the request, for error answers.
        ref: the reference.
        grid: the grid in its payload.
    """

    param: str
    ref: RawMMRef
    grid: tuple[int, int, int]


def is_reference(item: ImageItem) -> bool:
    """Whether the item is a reference. Otherwise, it contains serialised tensors in base64, which has no colon."""
    return item.data.startswith(_REFERENCE_PREFIX)


def check_reference(item: ImageItem, image_config: ServerImageConfig) -> CheckedReference:
    """Read, check and return the reference of an item.

    Raises:
        InvalidImageRef: the reference is malformed, or does not fit its request or this server.
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
    # The modality of a descriptor is `image` for every family. A reference may have the engine's name instead.
    if ref.modality not in (_GENERIC_MODALITY, image_config.modality):
        raise InvalidImageRef(
            f"the reference has the modality {ref.modality!r}, but its item has {image_config.modality!r}"
        )
    if ref.mm_hash != item.mm_hash:
        raise InvalidImageRef(f"the reference has the hash {ref.mm_hash}, but mm_hashes has {item.mm_hash[:128]!r}")
    if ref.family != geometry.family:
        raise InvalidImageRef(f"the reference has the family {ref.family!r}, but this server has {geometry.family!r}")
    if ref.fingerprint != geometry.fingerprint:
        raise InvalidImageRef(
            f"the reference has the layout fingerprint {ref.fingerprint}, but this server has {geometry.fingerprint};"
            " use the same processor configuration for worker and server"
        )
    grid = geometry.grid(ref.payload)
    tokens = geometry.tokens(grid)
    if tokens != item.placeholder_length:
        raise InvalidImageRef(
            f"the grid {list(grid)} has {tokens} tokens, but the placeholder range has {item.placeholder_length}"
        )
    return grid
