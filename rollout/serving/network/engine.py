"""The engine of `rollout serve transformers`: the strict endpoint's requests, answered by a network."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from renderers_adapter.adapter import load_processor_config
from rollout.images.processors import Backend, Processed, image_processor_for
from rollout.images.single_flight import SingleFlightCache
from rollout.serving.engine import Answer, Job, ModelCard
from rollout.serving.gate import Gate
from rollout.serving.network.batching import Batcher
from rollout.serving.network.model import Network
from rollout.serving.network.prompts import Picture, Prompt, rope_positions
from rollout.serving.network.settings import NetworkSettings
from rollout.serving.protocol import GenerateRequest, RequestRefused
from rollout.serving.request_reader import Intake, Taken
from rollout.serving.sampling import draw_for

_PATCH_BYTES = 256 * 1024 * 1024
_BACKEND: Backend = "pil"
"""What resizes images; a trainer must use the same."""


class NetworkEngine:
    """Answers requests by a network.

    Raises:
        ConfigurationError: the directory holds no checkpoint of a family that this knows.
        TokenizerError, AdapterError: it lacks a file or a token.
    """

    def __init__(self, settings: NetworkSettings) -> None:
        self._network = Network(settings.model_dir, device=settings.device, dtype=settings.dtype)
        self.card = ModelCard(
            settings.model_name or settings.model_dir.name,
            settings.model_dir,
            min(settings.max_model_len or self._network.max_model_len, self._network.max_model_len),
        )
        self._intake = Intake(self.card, settings.allowed_directories)
        self._processor = image_processor_for(
            "qwen_vl", load_processor_config(settings.model_dir), backend=_BACKEND, pixels="normalised"
        )
        self._patches = SingleFlightCache[Processed](_PATCH_BYTES, lambda processed: processed.patches.nbytes)
        self._batcher = Batcher(self._network)

    def prepare(self, request: GenerateRequest) -> Job:
        taken = self._intake.take(request)
        allowed = request.sampling_params.allowed_token_ids
        if allowed is not None and max(allowed) >= self._intake.tokenizer.vocab_size:
            raise RequestRefused(
                f"sampling_params.allowed_token_ids names {max(allowed)}, "
                f"outside the vocabulary of {self._intake.tokenizer.vocab_size} tokens.",
                param="sampling_params.allowed_token_ids",
            )
        pictures = self._pictures(request, taken)
        prompt = Prompt(
            taken.prompt.token_ids,
            rope_positions(
                len(taken.prompt.token_ids),
                taken.prompt.placeholders,
                [picture.patches.grid for picture in pictures],
                self._network.merge,
            ),
            pictures,
            request.sampling_params,
            draw_for(request),
        )
        return _Computed(taken.prompt, taken.limits, prompt, self._batcher)

    def reload(self, directory: Path | None) -> None:
        self._network.reload(directory)

    def close(self) -> None:
        self._batcher.close()

    def _pictures(self, request: GenerateRequest, taken: Taken) -> tuple[Picture, ...]:
        parts = request.content_parts or ()
        return tuple(
            Picture(part.uuid, self._patches.get(part.uuid, partial(self._processor.process, image)))
            for part, image in zip(parts, taken.images, strict=True)
        )


@dataclass(frozen=True, slots=True)
class _Computed(Job):
    """An answer that the network gives with those of others."""

    asked: Prompt
    batcher: Batcher

    async def write(self, answer: Answer, gate: Gate) -> None:
        await self.batcher.write(self.asked, answer, gate)
