"""Reads a request: checks it, decodes its images, and expands its prompt.

All our engines use this reader, so they refuse the same requests with the same errors.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from renderers_adapter.creation import load_processor_config
from renderers_adapter.decoding_memory import DEFAULT_DECODING_MEMORY, shared_decoding_memory
from renderers_adapter.geometry import GeometryError, geometry_for
from renderers_adapter.tokenizer import TokenizerError, load_tokenizer
from rollout.serving.engine import ModelCard, StopConditions
from rollout.serving.image_pads import ExpandedPrompt, expand_pads, find_image_pads
from rollout.serving.media import MediaReader
from rollout.serving.protocol import GenerateBody, RequestRefused


@dataclass(frozen=True, slots=True)
class ParsedRequest:
    """A checked request.

    Attributes:
        images: the decoded images, in order.
        prompt: the expanded prompt.
        stop_conditions: the conditions that end the answer.
    """

    images: list[Image.Image]
    prompt: ExpandedPrompt
    stop_conditions: StopConditions


class RequestReader:
    """Reads requests for one model of the Qwen-VL family. Several threads may call `read`.

    Attributes:
        tokenizer: the tokenizer of the model.
        eos_token_id: the token that ends an answer.

    Raises:
        TokenizerError, AdapterError: the model's directory lacks a file or a token.
    """

    def __init__(
        self,
        model_card: ModelCard,
        allowed_directories: Iterable[Path],
        image_memory: int = DEFAULT_DECODING_MEMORY,
    ) -> None:
        self.tokenizer = load_tokenizer(model_card.directory)
        self._model_card = model_card
        self._image_pad_id = self.tokenizer.token_id("<|image_pad|>")
        self._forbidden_token_ids = {
            name: self.tokenizer.token_id(name) for name in ("<|video_pad|>", "<|vision_pad|>")
        }
        if self.tokenizer.eos_token_id is None:
            raise TokenizerError(
                f"{model_card.directory} does not say which token ends an answer; set eos_token in "
                "tokenizer_config.json."
            )
        self.eos_token_id = self.tokenizer.eos_token_id
        self._geometry = geometry_for("qwen_vl", load_processor_config(model_card.directory))
        self._media = MediaReader(allowed_directories, shared_decoding_memory(image_memory))

    def read(self, request: GenerateBody) -> ParsedRequest:
        """Check a request, and return its images, its expanded prompt and its stop conditions.

        Raises:
            RequestRefused: the request is not valid, or the engine cannot answer it.
        """
        parts = request.content_parts or ()
        self._check_vocabulary(request.token_ids)
        pad_offsets = find_image_pads(request.token_ids, self._image_pad_id, len(parts))
        images = [self._media.read(index, part) for index, part in enumerate(parts)]
        image_token_counts = [
            self._image_token_count(index, image.width, image.height) for index, image in enumerate(images)
        ]
        prompt = expand_pads(request.token_ids, pad_offsets, image_token_counts)
        available_tokens = self._model_card.max_model_len - len(prompt.token_ids)
        if available_tokens < 1:
            raise RequestRefused(
                f"This model's maximum context length is {self._model_card.max_model_len} tokens, but the prompt has "
                f"{len(prompt.token_ids)}, with its images expanded; make it shorter.",
                param="token_ids",
            )
        sampling = request.sampling_params
        stop_token_ids = frozenset(sampling.stop_token_ids or ())
        stop_conditions = StopConditions(
            min(sampling.max_tokens or available_tokens, available_tokens),
            frozenset({self.eos_token_id}),
            stop_token_ids,
        )
        return ParsedRequest(images, prompt, stop_conditions)

    def _check_vocabulary(self, token_ids: list[int]) -> None:
        largest_id = max(token_ids)
        if largest_id >= self.tokenizer.vocab_size:
            raise RequestRefused(
                f"token_ids[{token_ids.index(largest_id)}] is {largest_id}, "
                f"which is outside the vocabulary of {self.tokenizer.vocab_size} tokens.",
                param="token_ids",
            )
        for name, token_id in self._forbidden_token_ids.items():
            if token_id in token_ids:
                raise RequestRefused(
                    f"token_ids[{token_ids.index(token_id)}] is {name}; this engine supports only images.",
                    param="token_ids",
                )

    def _image_token_count(self, index: int, width: int, height: int) -> int:
        try:
            return self._geometry.layout(width=width, height=height).tokens
        except GeometryError as error:
            raise RequestRefused(f"content_parts[{index}]: {error}", param=f"content_parts[{index}]") from error
