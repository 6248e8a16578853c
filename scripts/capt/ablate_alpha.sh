#!/usr/bin/env bash
# CAPT over the rule that weighs its frozen against its tuned consistency term (rules are ours):
#   bash scripts/capt/ablate_alpha.sh DATASET SHOTS [CFG] [KEY VALUE ...]
#   bash scripts/capt/ablate_alpha.sh shapes 16 tiny_robust
# For 1 to 4 shots on a ViT add OPTIM.MAX_EPOCH 20 or 50, as main.sh does.
source "$(dirname "${BASH_SOURCE[0]}")/../ablation.sh"
ablation capt_alpha CAPT "$@"
sweep TRAINER.CAPT.ALPHA "conf acc entropy const ramp"
curve TRAINER.CAPT.ALPHA
