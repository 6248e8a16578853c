#!/usr/bin/env bash
# CAPT between its two consistency terms: a constant alpha from 0, the tuned (train) term alone, to
# 1, the frozen term alone; the constants are ours. LAMBDA 0 would be neither.
#   bash scripts/capt/ablate_terms.sh DATASET SHOTS [CFG] [KEY VALUE ...]
#   bash scripts/capt/ablate_terms.sh shapes 16 tiny_robust
# For 1 to 4 shots on a ViT add OPTIM.MAX_EPOCH 20 or 50, as main.sh does.
source "$(dirname "${BASH_SOURCE[0]}")/../ablation.sh"
ablation capt_terms CAPT "$@"
sweep TRAINER.CAPT.ALPHA_CONST "0 0.25 0.5 0.75 1" TRAINER.CAPT.ALPHA const
curve TRAINER.CAPT.ALPHA_CONST
