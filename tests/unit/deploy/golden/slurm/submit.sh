#!/usr/bin/env bash
# Submits the run run7. Arguments go to sbatch: ./submit.sh --partition=cpu --time=12:00:00
# Submitted again after it has ended, it goes on with what is not done.
set -euo pipefail
cd "$(dirname "$0")"
launch=$(sbatch --parsable "$@" launch.sbatch)
sbatch --dependency="after:${launch%%;*}" "$@" workers-codeword.sbatch
sbatch --dependency="after:${launch%%;*}" "$@" workers-Sums_2.sbatch
