"""The command `python -m rollout.serving.tiny_model DIRECTORY --family FAMILY`."""

import argparse
import sys
from pathlib import Path

from rollout.errors import ConfigurationError
from rollout.serving.tiny_model.checkpoint import make_checkpoint
from rollout.serving.tiny_model.families import FAMILIES


def main() -> None:
    """Write a tiny checkpoint into a directory."""
    parser = argparse.ArgumentParser(prog="python -m rollout.serving.tiny_model", description="Make a tiny checkpoint.")
    parser.add_argument("directory", type=Path, help="the directory of the checkpoint; an older one is replaced")
    parser.add_argument("--family", choices=sorted(FAMILIES), default="qwen3-vl", help="the model family")
    parser.add_argument("--seed", type=int, default=0, help="the seed of the random weights")
    arguments = parser.parse_args()
    try:
        parameters = make_checkpoint(arguments.directory, arguments.family, seed=arguments.seed)
    except ConfigurationError as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        sys.exit(error.exit_code)
    sys.stdout.write(f"{arguments.directory}: {arguments.family}, {parameters:,} random parameters\n")


if __name__ == "__main__":
    main()
