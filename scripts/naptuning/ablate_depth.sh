#!/usr/bin/env bash
# NAP-Tuning over prompt depth, token refiners on and off (the paper's ablation):
#   bash scripts/naptuning/ablate_depth.sh DATASET SHOTS [CFG] [KEY VALUE ...]
#   bash scripts/naptuning/ablate_depth.sh shapes 16 tiny
# Depth 1 to 12, or to 6 on the built-in model, whose image tower has 6 blocks. Refiners stand
# between blocks with prompts, so that at depth 1 there are none.
source "$(dirname "${BASH_SOURCE[0]}")/../ablation.sh"
ablation naptuning_depth NAPTuning "$@"
case $cfg in tiny*) depths=$(echo {1..6}) ;; *) depths=$(echo {1..12}) ;; esac
for refiners in True False; do
  sweep TRAINER.NAPTUNING.PROMPT_DEPTH "$depths" \
    TRAINER.NAPTUNING.REFINER.VISION $refiners TRAINER.NAPTUNING.REFINER.TEXT $refiners
done
curve TRAINER.NAPTUNING.PROMPT_DEPTH
