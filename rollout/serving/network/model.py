"""The network: a checkpoint of the Qwen-VL families by transformers, computed for several sequences at once."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, DynamicCache, GenerationConfig
from transformers.utils import logging as transformers_logging

from rollout.errors import ConfigurationError
from rollout.serving.engine import WeightsRefused
from rollout.serving.network.decode_batch import Cohort, layers_of
from rollout.serving.network.prompts import Prompt
from rollout.serving.network.vision import Features, ImageEncoder

FAMILIES = ("qwen3_vl", "qwen2_5_vl")


class Network:
    """A checkpoint in memory. One thread computes at a time, in inference mode.

    Raises:
        ConfigurationError: the directory holds no checkpoint of a family that this knows.
    """

    def __init__(self, directory: Path, *, device: str, dtype: str) -> None:
        # A server does not draw bars on whatever terminal it was started from.
        transformers_logging.disable_progress_bar()
        self._directory = directory
        self._device = device
        self._dtype = getattr(torch, dtype)
        try:
            self._config = AutoConfig.from_pretrained(directory, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{directory} holds no checkpoint: {str(error)[:300]}") from error
        if self._config.model_type not in FAMILIES:
            raise ConfigurationError(
                f"{directory} is a checkpoint of {self._config.model_type}; "
                f"this engine computes {' and '.join(FAMILIES)}. Serve others with `rollout serve vllm`."
            )
        try:
            self._take(self._load(directory))
        except WeightsRefused as error:
            raise ConfigurationError(error.message) from error

    @property
    def merge(self) -> int:
        """How many patches of each side make one token."""
        merge: int = self._model.config.vision_config.spatial_merge_size
        return merge

    @property
    def max_model_len(self) -> int:
        """The longest sequence that the checkpoint was made for."""
        length: int = self._model.config.get_text_config().max_position_embeddings
        return length

    def reload(self, directory: Path | None) -> None:
        """Take other weights of the same model; all of them, or none. Raises WeightsRefused."""
        self._take(self._load(directory or self._directory))

    def prefill(self, prompts: Sequence[Prompt]) -> tuple[torch.Tensor, Cohort]:
        """Compute prompts together: the logits of what follows each, and what decoding goes on from."""
        length = max(len(prompt.token_ids) for prompt in prompts)
        ids = torch.zeros((len(prompts), length), dtype=torch.long)
        mask = torch.zeros((len(prompts), length), dtype=torch.long)
        positions = torch.zeros((3, len(prompts), length), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            start = length - len(prompt.token_ids)
            ids[row, start:] = torch.tensor(prompt.token_ids)
            mask[row, start:] = 1
            positions[:, row, start:] = torch.from_numpy(prompt.positions)
        cache = DynamicCache(config=self._model.config.get_text_config())
        pictures = [picture for prompt in prompts for picture in prompt.pictures]
        features = self._encoder.encode(pictures)
        mask = mask.to(self._device)
        logits = self._forward(
            ids, mask, positions, cache, mm_encoder_outputs=_joined([features[picture.name] for picture in pictures])
        )
        following = torch.tensor([int(prompt.positions.max()) + 1 for prompt in prompts], device=self._device)
        return logits, Cohort(layers_of(cache), mask, following)

    def decode(self, cohort: Cohort, token_ids: Sequence[int]) -> torch.Tensor:
        """Feed each sequence its newest token: the logits of what follows. The cohort grows by them."""
        cache = DynamicCache(config=self._model.config.get_text_config())
        for number, (keys, values) in enumerate(cohort.layers):
            cache.update(keys, values, number)
        mask = torch.cat((cohort.mask, cohort.mask.new_ones((len(token_ids), 1))), dim=1)
        ids = torch.tensor(token_ids, dtype=torch.long)[:, None]
        logits = self._forward(ids, mask, cohort.positions.expand(3, -1)[..., None], cache)
        cohort.layers, cohort.mask, cohort.positions = layers_of(cache), mask, cohort.positions + 1
        return logits

    def _forward(
        self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any, **images: Any
    ) -> torch.Tensor:
        out = self._model(
            input_ids=ids.to(self._device),
            attention_mask=mask,
            position_ids=positions.to(self._device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            **images,
        )
        logits: torch.Tensor = out.logits[:, -1].float()
        return logits

    def _load(self, directory: Path) -> Any:
        try:
            model, loaded = AutoModelForImageTextToText.from_pretrained(
                directory,
                config=self._config,
                # Unused, but a directory with weights alone has none, at which transformers would fail.
                generation_config=GenerationConfig(),
                dtype=self._dtype,
                local_files_only=True,
                output_loading_info=True,
            )
        except Exception as error:  # each file format has errors of its own
            raise WeightsRefused(f"{directory}: the weights cannot be loaded: {str(error)[:300]}") from error
        # transformers would go on with random numbers in the place of what is missing.
        wrong = {name: sorted(map(str, keys))[:3] for name, keys in loaded.items() if keys}
        if wrong:
            raise WeightsRefused(f"{directory}: the weights are not this model's: {wrong}")
        return model.to(self._device).eval()

    def _take(self, model: Any) -> None:
        self._model = model
        # Features are weights' work: none survives them.
        self._encoder = ImageEncoder(model.model.get_image_features, self._device)


def _joined(features: Sequence[Features]) -> dict[str, Any]:
    """Images in the order of the prompts, in the shape that the vision tower gives them to the language model."""
    if not features:
        return {}
    deep = [list(layer) for layer in zip(*(one.deep for one in features), strict=True)]
    return {"image": SimpleNamespace(pooler_output=[one.embeddings for one in features], deepstack_features=deep)}
