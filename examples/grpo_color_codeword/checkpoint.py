"""Makes the first checkpoint of the policy: a tiny Qwen3-VL with random weights.

    python -m examples.grpo_color_codeword.checkpoint DIRECTORY

It has weights, a tokenizer and an image processor. Use the directory as `model.path` of a run, for `rollout serve
transformers`, and for `Materializer.from_pretrained`.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rollout.errors import RolloutError
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


def main(argv: Sequence[str] | None = None) -> int:
    """Make the checkpoint that the command line describes, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="the directory of the checkpoint; an older one is replaced")
    parser.add_argument("--seed", type=int, default=0, help="the seed of the random weights")
    options = parser.parse_args(argv)
    try:
        make_policy(options.directory, seed=options.seed)
    except RolloutError as error:
        print(f"no checkpoint was made: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{options.directory}: a tiny Qwen3-VL with random weights")
    return 0


if __name__ == "__main__":
    sys.exit(main())
