"""From a request to what a network would be fed: checked, images read and decoded, the prompt expanded.

Both engines take their requests here, so that both refuse the same ones with the same words.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from renderers_adapter.adapter import load_processor_config
from renderers_adapter.geometry import GeometryError, geometry_for
from renderers_adapter.tokenizer import TokenizerError, load_tokenizer
from rollout.serving.engine import Limits, ModelCard
from rollout.serving.image_pads import ExpandedPrompt, expand, find_pads
from rollout.serving.media import MediaReader
from rollout.serving.protocol import GenerateRequest, RequestRefused


@dataclass(frozen=True, slots=True)
class Taken:
    """A sound request: its images, its expanded prompt, and what ends the answer."""

    images: list[Image.Image]
    prompt: ExpandedPrompt
    limits: Limits


class Intake:
    """Reads requests for one model of the Qwen-VL family. `take` may be called by several threads.

    Raises:
        TokenizerError, AdapterError: the model's directory lacks a file or a token.
    """

    def __init__(self, card: ModelCard, allowed: Iterable[Path]) -> None:
        self.tokenizer = load_tokenizer(card.directory)
        self._card = card
        self._pad = self.tokenizer.token_id("<|image_pad|>")
        self._not_in_prompts = {name: self.tokenizer.token_id(name) for name in ("<|video_pad|>", "<|vision_pad|>")}
        if self.tokenizer.eos_token_id is None:
            raise TokenizerError(
                f"{card.directory} does not say which token ends an answer: "
                "looked for eos_token in tokenizer_config.json."
            )
        self.end = self.tokenizer.eos_token_id
        self._geometry = geometry_for("qwen_vl", load_processor_config(card.directory))
        self._media = MediaReader(allowed)

    def take(self, request: GenerateRequest) -> Taken:
        """Read a request.

        Raises:
            RequestRefused: it would be answered with garbage, or cannot be answered at all.
        """
        parts = request.content_parts or ()
        self._check_vocabulary(request.token_ids)
        pads = find_pads(request.token_ids, self._pad, len(parts))
        images = [self._media.read(index, part) for index, part in enumerate(parts)]
        lengths = [self._tokens(index, image.width, image.height) for index, image in enumerate(images)]
        prompt = expand(request.token_ids, pads, lengths)
        room = self._card.max_model_len - len(prompt.token_ids)
        if room < 1:
            raise RequestRefused(
                f"This model's maximum context length is {self._card.max_model_len} tokens, "
                f"but the prompt takes {len(prompt.token_ids)}, images included; leave room for an answer.",
                param="token_ids",
            )
        sampling = request.sampling_params
        stops = frozenset(sampling.stop_token_ids or ())
        limits = Limits(min(sampling.max_tokens or room, room), frozenset({self.end}), stops)
        return Taken(images, prompt, limits)

    def _check_vocabulary(self, token_ids: list[int]) -> None:
        greatest = max(token_ids)
        if greatest >= self.tokenizer.vocab_size:
            raise RequestRefused(
                f"token_ids[{token_ids.index(greatest)}] is {greatest}, "
                f"outside the vocabulary of {self.tokenizer.vocab_size} tokens.",
                param="token_ids",
            )
        for name, token_id in self._not_in_prompts.items():
            if token_id in token_ids:
                raise RequestRefused(
                    f"token_ids[{token_ids.index(token_id)}] is {name}; this engine takes images only.",
                    param="token_ids",
                )

    def _tokens(self, index: int, width: int, height: int) -> int:
        try:
            return self._geometry.layout(width=width, height=height).tokens
        except GeometryError as error:
            raise RequestRefused(f"content_parts[{index}]: {error}", param=f"content_parts[{index}]") from error
