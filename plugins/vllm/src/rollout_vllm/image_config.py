"""The image configuration of a server, read from its model and its options at the start."""

from dataclasses import dataclass

from .contract.geometry import Geometry
from .files import ImageFiles


@dataclass(frozen=True, slots=True)
class ServerImageConfig:
    """What a server needs to know to check the images of requests.

    Attributes:
        modality: the engine's name for images.
        geometry: the geometry of the server's image processor.
        pad_id: the id of the image pad token.
        files: the directory whose images may be read; None if the server was started without one.
        max_images: how many images a request may have.
    """

    modality: str
    geometry: Geometry
    pad_id: int
    files: ImageFiles | None
    max_images: int
