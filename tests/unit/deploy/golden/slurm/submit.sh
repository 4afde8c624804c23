#!/usr/bin/env bash
# Submits the run run7. Arguments go to sbatch: ./submit.sh --partition=cpu --time=12:00:00
# Run it again after the run has ended to play the rollouts that are not done.
set -euo pipefail
cd "$(dirname "$0")"
launch=$(sbatch --parsable "$@" launch.sbatch)
sbatch --dependency="after:${launch%%;*}" "$@" workers-codeword.sbatch
sbatch --dependency="after:${launch%%;*}" "$@" workers-Sums_2.sbatch
