"""The families of tiny checkpoints: their architectures, chat templates and processor configurations.

This module imports torch and transformers only when it builds a network, so names can be listed without them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rollout.config.model_directory import BUILTIN_MODELS

_TEMPLATES = Path(__file__).parent / "templates"
SHIPPED_MODEL_DIRECTORY = BUILTIN_MODELS["builtin:tiny"]
"""The directory with the tokenizer and the template that the embedded engine uses by default."""

CONTEXT_LENGTH = 32768
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5]}

TokenIdLookup = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class PatchSizes:
    """How an image is divided.

    Attributes:
        patch_size: the side of a patch in pixels.
        merge_size: the number of patches on each side of the square that becomes one token.
    """

    patch_size: int
    merge_size: int = 2


@dataclass(frozen=True, slots=True)
class TinyFamily:
    """The parts in which families differ.

    Attributes:
        chat_template: the file of the family's chat template.
        build_network: builds a network with random weights, from the size of the vocabulary, a look-up of token ids,
            and how images are divided.
        config_files: makes the configuration files of a checkpoint, by name; they are written as JSON.
        patch_sizes: how the family's models divide images; None if the family is text-only.
    """

    chat_template: Path
    build_network: Callable[[int, TokenIdLookup, PatchSizes | None], Any]
    config_files: Callable[[PatchSizes | None], Mapping[str, Mapping[str, Any]]]
    patch_sizes: PatchSizes | None


def _build_qwen3_vl(vocab_size: int, token_id: TokenIdLookup, sizes: PatchSizes | None) -> Any:
    assert sizes is not None
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    config = Qwen3VLConfig(
        text_config=_text_config(vocab_size, token_id) | {"rope_parameters": {**_MROPE, "mrope_interleaved": True}},
        vision_config={
            **_vision_config(sizes),
            "num_position_embeddings": 144,
            "deepstack_visual_indexes": [0, 1],
        },
        **_vision_token_config(token_id),
    )
    return Qwen3VLForConditionalGeneration(config)


def _build_qwen2_5_vl(vocab_size: int, token_id: TokenIdLookup, sizes: PatchSizes | None) -> Any:
    assert sizes is not None
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = _text_config(vocab_size, token_id) | {"rope_parameters": _MROPE, "use_sliding_window": False}
    vision = {
        **_vision_config(sizes),
        "window_size": 4 * sizes.patch_size * sizes.merge_size,
        "fullatt_block_indexes": [1],
        "hidden_act": "silu",
    }
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **_vision_token_config(token_id))
    return Qwen2_5_VLForConditionalGeneration(config)


def _build_qwen3(vocab_size: int, token_id: TokenIdLookup, sizes: PatchSizes | None) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    rope = {"rope_type": "default", "rope_theta": 10000.0}
    config = Qwen3Config(**_text_config(vocab_size, token_id), rope_parameters=rope, tie_word_embeddings=False)
    return Qwen3ForCausalLM(config)


def _vision_config(sizes: PatchSizes) -> dict[str, Any]:
    return {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 2,
        "in_channels": 3,
        "patch_size": sizes.patch_size,
        "spatial_merge_size": sizes.merge_size,
        "temporal_patch_size": 2,
        "out_hidden_size": 64,
        "hidden_act": "gelu_pytorch_tanh",
    }


def _text_config(vocab_size: int, token_id: TokenIdLookup) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": CONTEXT_LENGTH,
        "rms_norm_eps": 1e-6,
        "bos_token_id": token_id("<|endoftext|>"),
        "eos_token_id": token_id("<|im_end|>"),
        "pad_token_id": token_id("<|endoftext|>"),
    }


def _vision_token_config(token_id: TokenIdLookup) -> dict[str, Any]:
    return {
        "image_token_id": token_id("<|image_pad|>"),
        "video_token_id": token_id("<|video_pad|>"),
        "vision_start_token_id": token_id("<|vision_start|>"),
        "vision_end_token_id": token_id("<|vision_end|>"),
        "tie_word_embeddings": False,
    }


def _image_processor_config(
    sizes: PatchSizes, min_pixels: int, max_pixels: int, mean: list[float], std: list[float]
) -> dict[str, Any]:
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "rescale_factor": 1 / 255,
        "image_mean": mean,
        "image_std": std,
        "resample": 3,
        "patch_size": sizes.patch_size,
        "merge_size": sizes.merge_size,
        "temporal_patch_size": 2,
        "size": {"shortest_edge": min_pixels, "longest_edge": max_pixels},
    }


_CLIP_MEAN, _CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def _qwen3_vl_files(sizes: PatchSizes | None) -> Mapping[str, Mapping[str, Any]]:
    assert sizes is not None
    image_processor = _image_processor_config(sizes, 65536, 16777216, [0.5] * 3, [0.5] * 3)
    return _processor_files(image_processor, "Qwen3VLProcessor", "Qwen3VLVideoProcessor")


def _qwen2_5_vl_files(sizes: PatchSizes | None) -> Mapping[str, Mapping[str, Any]]:
    assert sizes is not None
    image_processor = _image_processor_config(sizes, 3136, 12845056, _CLIP_MEAN, _CLIP_STD)
    return _processor_files(image_processor, "Qwen2_5_VLProcessor", "Qwen2VLVideoProcessor")


def _processor_files(
    image_processor: Mapping[str, Any], processor: str, video_processor_class: str
) -> Mapping[str, Mapping[str, Any]]:
    return {
        "preprocessor_config.json": {"processor_class": processor, **image_processor},
        "video_preprocessor_config.json": {
            **{key: value for key, value in image_processor.items() if key != "image_processor_type"},
            "processor_class": processor,
            "video_processor_type": video_processor_class,
        },
    }


FAMILIES: Mapping[str, TinyFamily] = {
    "qwen3-vl": TinyFamily(
        SHIPPED_MODEL_DIRECTORY / "chat_template.jinja",
        _build_qwen3_vl,
        _qwen3_vl_files,
        PatchSizes(16),
    ),
    "qwen2.5-vl": TinyFamily(
        _TEMPLATES / "qwen2_5_vl.jinja",
        _build_qwen2_5_vl,
        _qwen2_5_vl_files,
        PatchSizes(14),
    ),
    "text": TinyFamily(_TEMPLATES / "qwen3.jinja", _build_qwen3, lambda sizes: {}, None),
}
