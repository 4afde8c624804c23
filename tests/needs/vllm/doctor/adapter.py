"""Writes a LoRA adapter that changes nothing, so that its log-probs are those of the checkpoint."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

_RANK = 8


def write_adapter(checkpoint: Path, directory: Path) -> Path:
    """Write an adapter of the first query projection of a checkpoint, and return its directory."""
    weights = load_file(checkpoint / "model.safetensors")
    name = next(name for name in weights if name.endswith("layers.0.self_attn.q_proj.weight") and "visual" not in name)
    outputs, inputs = weights[name].shape
    prefix = f"base_model.model.{name.removesuffix('.weight')}"
    directory.mkdir()
    save_file(
        {
            f"{prefix}.lora_A.weight": np.ones((_RANK, inputs), np.float32),
            f"{prefix}.lora_B.weight": np.zeros((outputs, _RANK), np.float32),
        },
        directory / "adapter_model.safetensors",
    )
    settings = {"peft_type": "LORA", "r": _RANK, "lora_alpha": _RANK, "target_modules": ["q_proj"], "bias": "none"}
    (directory / "adapter_config.json").write_text(json.dumps(settings), "utf-8")
    return directory
