"""`python -m rollout.serving.tiny_model DIRECTORY --family FAMILY`."""

import argparse
import sys
from pathlib import Path

from rollout.serving.tiny_model.checkpoint import make
from rollout.serving.tiny_model.families import FAMILIES


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m rollout.serving.tiny_model", description="Make a tiny checkpoint.")
    parser.add_argument("directory", type=Path, help="is made; an older checkpoint in it is replaced")
    parser.add_argument("--family", choices=sorted(FAMILIES), default="qwen3-vl")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights")
    given = parser.parse_args()
    parameters = make(given.directory, given.family, seed=given.seed)
    sys.stdout.write(f"{given.directory}: {given.family}, {parameters:,} random parameters\n")


if __name__ == "__main__":
    main()
