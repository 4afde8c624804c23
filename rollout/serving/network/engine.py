"""The engine of `rollout serve transformers`, which answers requests with a network."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from renderers_adapter.creation import load_processor_config
from rollout.images.processors import ProcessedImage, ResizeBackend, image_processor_for
from rollout.images.rope import rope_positions
from rollout.images.single_flight import SingleFlightCache
from rollout.serving.engine import Answer, Job, ModelCard
from rollout.serving.gate import PauseGate
from rollout.serving.network.batching import Batcher
from rollout.serving.network.model import Network
from rollout.serving.network.prompts import NetworkPrompt, PromptImage
from rollout.serving.network.settings import NetworkSettings
from rollout.serving.protocol import GenerateBody, RequestRefused
from rollout.serving.request_reader import ParsedRequest, RequestReader
from rollout.serving.sampling import rng_for_request

_PATCH_CACHE_BYTES = 256 * 1024 * 1024
_RESIZE_BACKEND: ResizeBackend = "pil"
"""The backend that resizes images; a trainer must use the same one."""


class NetworkEngine:
    """Answers requests with a network.

    Attributes:
        model_card: the description of the model that the engine serves.

    Raises:
        ConfigurationError: the directory contains no checkpoint of a supported family.
        TokenizerError, AdapterError: the directory lacks a file or a token.
    """

    def __init__(self, settings: NetworkSettings) -> None:
        self._network = Network(settings.model_dir, device=settings.device, dtype=settings.dtype)
        self.model_card = ModelCard(
            settings.model_name or settings.model_dir.name,
            settings.model_dir,
            min(settings.max_model_len or self._network.max_model_len, self._network.max_model_len),
        )
        self._request_reader = RequestReader(self.model_card, settings.allowed_directories)
        self._image_processor = (
            image_processor_for(
                "qwen_vl", load_processor_config(settings.model_dir), backend=_RESIZE_BACKEND, pixels="normalised"
            )
            if self._network.takes_images
            else None
        )
        self._patch_cache = SingleFlightCache[ProcessedImage](
            _PATCH_CACHE_BYTES, lambda processed: processed.patches.nbytes
        )
        self._batcher = Batcher(self._network)

    def prepare(self, request: GenerateBody) -> Job:
        """Check a request, and return its job; see `Engine.prepare`."""
        parsed = self._request_reader.read(request)
        for key in ("allowed_token_ids", "logit_bias"):
            largest_id = max(getattr(request.sampling_params, key) or (0,))
            if largest_id >= self._request_reader.tokenizer.vocab_size:
                raise RequestRefused(
                    f"sampling_params.{key} has the token {largest_id}, which is outside the vocabulary of "
                    f"{self._request_reader.tokenizer.vocab_size} tokens.",
                    param=f"sampling_params.{key}",
                )
        images = self._prompt_images(request, parsed)
        network_prompt = NetworkPrompt(
            parsed.prompt.token_ids,
            rope_positions(
                len(parsed.prompt.token_ids),
                parsed.prompt.placeholders,
                [image.processed.grid for image in images],
                self._network.merge_size,
            ),
            images,
            request.sampling_params,
            rng_for_request(request),
        )
        return NetworkJob(parsed.prompt, parsed.stop_conditions, network_prompt, self._batcher)

    def reload(self, directory: Path | None) -> None:
        """Load other weights; see `Engine.reload`."""
        self._network.reload(directory)

    def close(self) -> None:
        """Stop: no further step starts."""
        self._batcher.close()

    def _prompt_images(self, request: GenerateBody, parsed: ParsedRequest) -> tuple[PromptImage, ...]:
        if self._image_processor is None:
            return ()
        parts = request.content_parts or ()
        return tuple(
            PromptImage(part.uuid, self._patch_cache.get(part.uuid, partial(self._image_processor.process, image)))
            for part, image in zip(parts, parsed.images, strict=True)
        )


@dataclass(frozen=True, slots=True)
class NetworkJob(Job):
    """A job whose answer the network computes in a batch with the answers to other requests.

    Attributes:
        network_prompt: the prompt in the form that the network needs.
        batcher: the batcher of the engine.
    """

    network_prompt: NetworkPrompt
    batcher: Batcher

    async def generate(self, answer: Answer, gate: PauseGate) -> None:
        """Generate the answer; see `Job.generate`."""
        await self.batcher.generate(self.network_prompt, answer, gate)
