"""The network: a checkpoint of a Qwen-VL family or of Llama. Transformers computes several sequences at once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, DynamicCache, GenerationConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures
from transformers.utils import logging as transformers_logging

from rollout.errors import ConfigurationError
from rollout.serving.engine import WeightsRefused
from rollout.serving.network.decode_batch import DecodeBatch, layers_of
from rollout.serving.network.prompts import NetworkPrompt
from rollout.serving.network.vision import ImageEncoder, VisionFeatures

IMAGE_MODEL_TYPES = ("qwen3_vl", "qwen2_5_vl")
TEXT_MODEL_TYPES = ("llama",)


class Network:
    """A checkpoint in memory. Only one thread may use it at a time, in inference mode.

    Raises:
        ConfigurationError: the directory contains no checkpoint of a supported family.
    """

    def __init__(self, directory: Path, *, device: str, dtype: str) -> None:
        # A server must not show progress bars.
        transformers_logging.disable_progress_bar()
        self._directory = directory
        self._device = device
        self._dtype = getattr(torch, dtype)
        try:
            self._config = AutoConfig.from_pretrained(directory, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"{directory} has no checkpoint that transformers can load: {str(error)[:300]}"
            ) from error
        if self._config.model_type not in (*IMAGE_MODEL_TYPES, *TEXT_MODEL_TYPES):
            raise ConfigurationError(
                f"{directory} is a checkpoint of {self._config.model_type}; "
                f"this engine supports {', '.join((*IMAGE_MODEL_TYPES, *TEXT_MODEL_TYPES))}. "
                "Serve others with `rollout serve vllm`."
            )
        try:
            self._use_model(self._load(directory))
        except WeightsRefused as error:
            raise ConfigurationError(error.message) from error

    @property
    def takes_images(self) -> bool:
        """Whether the checkpoint has a vision tower."""
        return self._config.model_type in IMAGE_MODEL_TYPES

    @property
    def merge_size(self) -> int:
        """The number of patches along each side that are merged into one token; 1 without a vision tower."""
        if not self.takes_images:
            return 1
        merge_size: int = self._model.config.vision_config.spatial_merge_size
        return merge_size

    @property
    def max_model_len(self) -> int:
        """The limit for a sequence in this checkpoint, in tokens."""
        length: int = self._model.config.get_text_config().max_position_embeddings
        return length

    def reload(self, directory: Path | None) -> None:
        """Load other weights; see `Engine.reload`."""
        self._use_model(self._load(directory or self._directory))

    def prefill(self, prompts: Sequence[NetworkPrompt]) -> tuple[torch.Tensor, DecodeBatch]:
        """Compute prompts together; return the logits of each next token, and the batch for decoding."""
        length = max(len(prompt.token_ids) for prompt in prompts)
        input_ids = torch.zeros((len(prompts), length), dtype=torch.long)
        attention_mask = torch.zeros((len(prompts), length), dtype=torch.long)
        positions = torch.zeros((3, len(prompts), length), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            start = length - len(prompt.token_ids)
            input_ids[row, start:] = torch.tensor(prompt.token_ids)
            attention_mask[row, start:] = 1
            positions[:, row, start:] = torch.from_numpy(prompt.positions)
        cache = DynamicCache(config=self._model.config.get_text_config())
        images = [image for prompt in prompts for image in prompt.images]
        features = {} if self._encoder is None else self._encoder.encode(images)
        attention_mask = attention_mask.to(self._device)
        logits = self._forward(
            input_ids,
            attention_mask,
            positions,
            cache,
            mm_encoder_outputs=_encoder_outputs([features[picture.image_hash] for picture in images]),
        )
        next_positions = torch.tensor([int(prompt.positions.max()) + 1 for prompt in prompts], device=self._device)
        return logits, DecodeBatch(layers_of(cache), attention_mask, next_positions)

    def decode(self, decode_batch: DecodeBatch, token_ids: Sequence[int]) -> torch.Tensor:
        """Append the latest token to each sequence of the batch, and return the logits of each next token."""
        cache = DynamicCache(config=self._model.config.get_text_config())
        for layer_index, (keys, values) in enumerate(decode_batch.layers):
            cache.update(keys, values, layer_index)
        attention_mask = torch.cat(
            (decode_batch.attention_mask, decode_batch.attention_mask.new_ones((len(token_ids), 1))), dim=1
        )
        input_ids = torch.tensor(token_ids, dtype=torch.long)[:, None]
        logits = self._forward(input_ids, attention_mask, decode_batch.next_positions.expand(3, -1)[..., None], cache)
        decode_batch.layers, decode_batch.attention_mask, decode_batch.next_positions = (
            layers_of(cache),
            attention_mask,
            decode_batch.next_positions + 1,
        )
        return logits

    def _forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        positions: torch.Tensor,
        cache: Any,
        **image_inputs: Any,
    ) -> torch.Tensor:
        # Arguments go by position: older versions of transformers call the cache past_key_values.
        out = self._model(
            input_ids.to(self._device),
            attention_mask,
            (positions if self.takes_images else positions[0]).to(self._device),
            cache,
            use_cache=True,
            logits_to_keep=1,
            **image_inputs,
        )
        logits: torch.Tensor = out.logits[:, -1].float()
        return logits

    def _load(self, directory: Path) -> Any:
        try:
            model_class = AutoModelForImageTextToText if self.takes_images else AutoModelForCausalLM
            model, loading_info = model_class.from_pretrained(
                directory,
                config=self._config,
                # It is not used, but without it transformers fails for a directory that has only weights.
                generation_config=GenerationConfig(),
                dtype=self._dtype,
                local_files_only=True,
                output_loading_info=True,
            )
        except Exception as error:  # each file format has its own errors
            raise WeightsRefused(f"{directory}: the weights cannot be loaded: {str(error)[:300]}") from error
        # transformers would use random numbers for missing weights.
        mismatched_keys = {name: sorted(map(str, keys))[:3] for name, keys in loading_info.items() if keys}
        if mismatched_keys:
            raise WeightsRefused(f"{directory}: the weights belong to another model: {mismatched_keys}")
        return model.to(self._device).eval()

    def _use_model(self, model: Any) -> None:
        self._model = model
        # Cached features depend on the weights, so each model has a new cache.
        self._encoder = ImageEncoder(model.model.get_image_features, self._device) if self.takes_images else None


def _encoder_outputs(features: Sequence[VisionFeatures]) -> dict[str, Any]:
    """Return image features in the form in which the vision tower gives them to the language model."""
    if not features:
        return {}
    deepstack_layers = [
        list(layer) for layer in zip(*(image_features.deepstack for image_features in features), strict=True)
    ]
    return {
        "image": BaseModelOutputWithDeepstackFeatures(
            pooler_output=[one.embeddings for one in features], deepstack_features=deepstack_layers
        )
    }
