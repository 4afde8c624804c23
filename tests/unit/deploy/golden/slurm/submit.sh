#!/usr/bin/env bash
# Submits the run run7. sbatch gets the arguments, for example: ./submit.sh --partition=cpu --time=12:00:00
# If some rollouts are not done after the run has ended, run this script again to play them.
set -euo pipefail
cd "$(dirname "$0")"
launch=$(sbatch --parsable "$@" launch.sbatch)
sbatch --dependency="after:${launch%%;*}" "$@" workers-codeword.sbatch
sbatch --dependency="after:${launch%%;*}" "$@" workers-Sums_2.sbatch
