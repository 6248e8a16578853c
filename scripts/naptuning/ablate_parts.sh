#!/usr/bin/env bash
# NAP-Tuning whole, without its prompts (refiners alone, the adapter of equal size) and without its
# refiners (prompts alone):
#   bash scripts/naptuning/ablate_parts.sh DATASET SHOTS [CFG] [KEY VALUE ...]
#   bash scripts/naptuning/ablate_parts.sh shapes 16 tiny
# VALUES, the numbers of vectors with refiners, is "16 0" where it is not given.
source "$(dirname "${BASH_SOURCE[0]}")/../ablation.sh"
ablation naptuning_parts NAPTuning "$@"
sweep TRAINER.NAPTUNING.N_CTX "16 0" \
  TRAINER.NAPTUNING.REFINER.VISION True TRAINER.NAPTUNING.REFINER.TEXT True
VALUES=16 sweep TRAINER.NAPTUNING.N_CTX 16 \
  TRAINER.NAPTUNING.REFINER.VISION False TRAINER.NAPTUNING.REFINER.TEXT False
curve TRAINER.NAPTUNING.N_CTX
