"""Reads a request: checks it, decodes its images, and expands its prompt.

All our engines use this reader, so they refuse the same requests with the same errors.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from renderers_adapter.decoding_memory import DEFAULT_DECODING_MEMORY, shared_decoding_memory
from renderers_adapter.tokenizer import load_tokenizer
from rollout.serving.end_tokens import find_end_tokens
from rollout.serving.engine import ModelCard, StopConditions
from rollout.serving.image_input import ImageInput
from rollout.serving.image_pads import ExpandedPrompt
from rollout.serving.media import MediaReader
from rollout.serving.protocol import ContentPart, GenerateBody, RequestRefused


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
    """Reads requests for one model of text, or of the Qwen-VL family. Several threads may call `read`.

    Attributes:
        tokenizer: the tokenizer of the model.
        end_tokens: the tokens that end an answer.

    Raises:
        TokenizerError, AdapterError: a file of the model's directory is missing or wrong.
    """

    def __init__(
        self,
        model_card: ModelCard,
        allowed_directories: Iterable[Path],
        image_memory: int = DEFAULT_DECODING_MEMORY,
    ) -> None:
        self.tokenizer = load_tokenizer(model_card.directory)
        self._model_card = model_card
        self.end_tokens = find_end_tokens(model_card.directory, self.tokenizer)
        self._image_input = ImageInput.of_model(model_card.directory, self.tokenizer)
        self._media = MediaReader(allowed_directories, shared_decoding_memory(image_memory))

    def read(self, request: GenerateBody) -> ParsedRequest:
        """Check a request, and return its images, its expanded prompt and its stop conditions.

        Raises:
            RequestRefused: the request is not valid, or the engine cannot answer it.
        """
        parts = request.content_parts or ()
        self._check_vocabulary(request.token_ids)
        images, prompt = self._read_images(request.token_ids, parts)
        available_tokens = self._model_card.max_model_len - len(prompt.token_ids)
        if available_tokens < 1:
            raise RequestRefused(
                f"This model's maximum context length is {self._model_card.max_model_len} tokens, but the prompt has "
                f"{len(prompt.token_ids)}, with its images expanded; make it shorter.",
                param="token_ids",
            )
        sampling = request.sampling_params
        stop_token_ids = self.end_tokens.others.union(sampling.stop_token_ids or ())
        stop_conditions = StopConditions(
            min(sampling.max_tokens or available_tokens, available_tokens),
            frozenset({self.end_tokens.main}),
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

    def _read_images(
        self, token_ids: list[int], parts: Sequence[ContentPart]
    ) -> tuple[list[Image.Image], ExpandedPrompt]:
        if self._image_input is None:
            if parts:
                raise RequestRefused(
                    f"This model takes no images, but content_parts has {len(parts)}; send text only. If the model "
                    "takes images, copy preprocessor_config.json from its checkpoint.",
                    param="content_parts",
                )
            return [], ExpandedPrompt(token_ids, ())
        pad_offsets = self._image_input.find_pads(token_ids, len(parts))
        images = [self._media.read(index, part) for index, part in enumerate(parts)]
        return images, self._image_input.expand(token_ids, pad_offsets, images)
