"""The image configuration of a server, read from its model and its options at the start."""

from dataclasses import dataclass

from .contract.geometry import Geometry
from .files import ImageFiles


@dataclass(frozen=True, slots=True)
class ServerImageConfig:
    """The data that a server needs to check the images of requests.

    Attributes:
        modality: the engine's name for images.
        geometry: the geometry of the server's image processor.
        pad_id: the id of the image pad token.
        files: the files in the directory of images; None if the server was started without a directory.
        max_images: the maximum number of images in a request.
    """

    modality: str
    geometry: Geometry
    pad_id: int
    files: ImageFiles | None
    max_images: int
