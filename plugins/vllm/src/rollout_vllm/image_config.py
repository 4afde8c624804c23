"""What one server demands of an image: learnt from its model and its options when it starts."""

from dataclasses import dataclass

from .contract.geometry import Geometry
from .files import ImageFiles


@dataclass(frozen=True, slots=True)
class ServerImageConfig:
    """The image side of a running server.

    Attributes:
        modality: the engine's name for images.
        geometry: the layout contract of this server's own image processor.
        pad_id: the token that every placeholder range consists of.
        files: the directory where images may be read; None: the server was started without one.
        max_images: the most images that one request may have.
    """

    modality: str
    geometry: Geometry
    pad_id: int
    files: ImageFiles | None
    max_images: int
