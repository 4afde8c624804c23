"""The policy before it has learnt anything: a tiny Qwen3-VL with random weights, made on the spot."""

import json
from pathlib import Path

from rollout.serving.tiny_model.checkpoint import make_checkpoint

_WEIGHT_SCALE = 4.0
"""Larger than usual: it learns sooner. Much larger, and it never learns to remember."""
_ONE_TOKEN_PIXELS = 32 * 32
"""So few pixels are enough for the processor, so that a picture of 32 x 32 is a single token."""


def make_policy(directory: Path, *, seed: int) -> None:
    """Write the checkpoint."""
    make_checkpoint(directory, "qwen3-vl", seed=seed, scale=_WEIGHT_SCALE)
    file = directory / "preprocessor_config.json"
    settings = json.loads(file.read_text("utf-8"))
    settings["size"]["shortest_edge"] = _ONE_TOKEN_PIXELS
    file.write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
