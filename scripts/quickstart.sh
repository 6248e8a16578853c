#!/usr/bin/env bash
# From a fresh clone to a table and a picture: bash scripts/quickstart.sh
# Sets up, then runs the main job on the built-in data with the built-in model (2 CPU cores):
# zero-shot CLIP and AdvPT, 16 shots, one seed, 640 test images.
# Results go to output/quickstart (or $OUTPUT).
set -euo pipefail
case ${OUTPUT:-/} in /*) ;; *) OUTPUT=$PWD/$OUTPUT ;; esac # relative to where it was called
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
export OUTPUT=${OUTPUT:-$PWD/output/quickstart} SEEDS=1 ATTACK=advpt_tiny
bash scripts/zsclip/main.sh shapes tiny TEST.SUBSET 640 >/dev/null # its table is part of the next one
bash scripts/advpt/main.sh shapes 16 tiny TEST.SUBSET 640
echo "picture (clean | perturbation x10 | adversarial):"
find "$OUTPUT/shapes/AdvPT" -path "*/tiny_advpt_tiny_16shots/*" -name picture.png -print -quit
