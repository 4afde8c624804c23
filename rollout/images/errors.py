"""The errors of images.

`ImageError`: an image in a message is not accepted. `ImageStoreError`: the image directory cannot be used.
`ImageMemoryError`: other images use all memory for decoding. `AssetError`: a stored image is missing or changed.
"""

from rollout.errors import RolloutError
from rollout.records.messages import MessageError


class ImageError(MessageError):
    """An image in a message is refused.

    Attributes:
        reason: why the image is refused.
        message_index: the index of the image's message in the conversation; None if this is not known yet.
        part_index: the index of the image's part in the content of the message; None if this is not known yet.
    """

    def __init__(self, reason: str, *, message_index: int | None = None, part_index: int | None = None) -> None:
        self.reason = reason
        self.message_index = message_index
        self.part_index = part_index
        where = "" if message_index is None else f"messages[{message_index}].content[{part_index}]: "
        super().__init__(where + reason)

    def at(self, message_index: int, part_index: int) -> "ImageError":
        """Return the same error with the position of the image."""
        return ImageError(self.reason, message_index=message_index, part_index=part_index)


class ImageStoreError(RolloutError):
    """The image directory cannot be used, for example because it is full, read-only or deleted."""

    infrastructure = True


class ImageMemoryError(RolloutError):
    """The memory for decoding images did not become free in time."""

    infrastructure = True


class AssetError(RolloutError):
    """A stored image is missing or changed, or a file name is not the name of an asset.

    Attributes:
        file_name: the file name of the asset.
        reason: what is wrong with the asset.
    """

    def __init__(self, file_name: str, reason: str) -> None:
        self.file_name = file_name
        self.reason = reason
        super().__init__(f"image asset {file_name[:100]!r}: {reason}")
