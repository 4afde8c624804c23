"""What a model accepts as images: the pad token of an image, and the number of its tokens."""

from pathlib import Path
from typing import Self

from PIL import Image

from renderers_adapter.creation import has_processor_config, load_processor_config
from renderers_adapter.geometry import Geometry, GeometryError, geometry_for
from renderers_adapter.tokenizer import FastTokenizer
from rollout.serving.image_pads import ExpandedPrompt, expand_pads, find_image_pads
from rollout.serving.model_files import read_config
from rollout.serving.protocol import RequestRefused

_IMAGE_PAD = "<|image_pad|>"
_OTHER_MEDIA = ("<|video_pad|>", "<|vision_pad|>")


class ImageInput:
    """The images of one model of the Qwen-VL family. A model of text has none of these."""

    def __init__(self, tokenizer: FastTokenizer, geometry: Geometry) -> None:
        self._pad_id = tokenizer.token_id(_IMAGE_PAD)
        self._forbidden_token_ids = {name: tokenizer.token_id(name) for name in _OTHER_MEDIA}
        self._geometry = geometry

    @classmethod
    def of_model(cls, directory: Path, tokenizer: FastTokenizer) -> Self | None:
        """Return what a model accepts as images; None for a model of text.

        A model of text has no image pad, or neither a processor configuration nor a vision_config in config.json.

        Raises:
            TokenizerError, AdapterError: the model takes images, but a file or a token is wrong.
        """
        if tokenizer.backend.token_to_id(_IMAGE_PAD) is None:
            return None
        if not has_processor_config(directory) and not _has_vision_config(directory / "config.json"):
            return None
        return cls(tokenizer, geometry_for("qwen_vl", load_processor_config(directory)))

    def find_pads(self, token_ids: list[int], image_count: int) -> list[int]:
        """Return the offsets of the pad tokens, one for each image.

        Raises:
            RequestRefused: the pads do not fit the images, or the prompt has other media.
        """
        for name, token_id in self._forbidden_token_ids.items():
            if token_id in token_ids:
                raise RequestRefused(
                    f"token_ids[{token_ids.index(token_id)}] is {name}; this engine supports only images.",
                    param="token_ids",
                )
        return find_image_pads(token_ids, self._pad_id, image_count)

    def expand(self, token_ids: list[int], pad_offsets: list[int], images: list[Image.Image]) -> ExpandedPrompt:
        """Return the prompt with as many pads for each image as it has tokens.

        Raises:
            RequestRefused: the model does not take an image of this size.
        """
        counts = [self._token_count(index, image.width, image.height) for index, image in enumerate(images)]
        return expand_pads(token_ids, pad_offsets, counts)

    def _token_count(self, index: int, width: int, height: int) -> int:
        try:
            return self._geometry.layout(width=width, height=height).tokens
        except GeometryError as error:
            raise RequestRefused(f"content_parts[{index}]: {error}", param=f"content_parts[{index}]") from error


def _has_vision_config(path: Path) -> bool:
    return path.is_file() and "vision_config" in read_config(path)
