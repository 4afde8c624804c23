"""Makes the first checkpoint of the policy: a tiny Qwen3-VL with random weights."""

import json
from pathlib import Path

from rollout.serving.tiny_model.checkpoint import make_checkpoint

_WEIGHT_SCALE = 4.0
"""Larger than usual, so that the policy learns faster. With a much larger one it does not learn to remember."""
_ONE_TOKEN_PIXELS = 32 * 32
"""The processor enlarges images below this number of pixels. So a picture of 32 x 32 is one token."""


def make_policy(directory: Path, *, seed: int) -> None:
    """Write the checkpoint into a directory."""
    make_checkpoint(directory, "qwen3-vl", seed=seed, scale=_WEIGHT_SCALE)
    file = directory / "preprocessor_config.json"
    settings = json.loads(file.read_text("utf-8"))
    settings["size"]["shortest_edge"] = _ONE_TOKEN_PIXELS
    file.write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
