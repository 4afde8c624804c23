"""The command `python -m rollout.serving.tiny_model DIRECTORY --family FAMILY`."""

import argparse
import sys
from pathlib import Path

from rollout.errors import ConfigurationError
from rollout.serving.tiny_model.checkpoint import make_checkpoint
from rollout.serving.tiny_model.families import FAMILIES, PatchSizes


def main() -> None:
    """Write a tiny checkpoint into a directory."""
    parser = argparse.ArgumentParser(prog="python -m rollout.serving.tiny_model", description="Make a tiny checkpoint.")
    parser.add_argument("directory", type=Path, help="the directory of the checkpoint; an older one is replaced")
    parser.add_argument("--family", choices=sorted(FAMILIES), default="qwen3-vl", help="the model family")
    parser.add_argument("--seed", type=int, default=0, help="the seed of the random weights")
    parser.add_argument("--patch-size", type=int, metavar="PIXELS", help="the side of a patch of an image")
    parser.add_argument("--merge-size", type=int, metavar="N", help="N times N patches become one token")
    parser.add_argument("--merges", type=int, metavar="N", help="keep only N merges of the tokenizer")
    arguments = parser.parse_args()
    family_sizes = FAMILIES[arguments.family].patch_sizes
    if family_sizes is None and (arguments.patch_size or arguments.merge_size):
        parser.error(f"the family {arguments.family} takes no images; leave out --patch-size and --merge-size")
    sizes = family_sizes and PatchSizes(
        arguments.patch_size or family_sizes.patch_size, arguments.merge_size or family_sizes.merge_size
    )
    try:
        parameters = make_checkpoint(
            arguments.directory, arguments.family, seed=arguments.seed, patch_sizes=sizes, merges=arguments.merges
        )
    except ConfigurationError as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        sys.exit(error.exit_code)
    sys.stdout.write(f"{arguments.directory}: {arguments.family}, {parameters:,} random parameters\n")


if __name__ == "__main__":
    main()
