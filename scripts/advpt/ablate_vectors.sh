#!/usr/bin/env bash
# AdvPT over the number of context vectors (the paper's ablation); all share one bank:
#   bash scripts/advpt/ablate_vectors.sh DATASET SHOTS [CFG] [KEY VALUE ...]
#   bash scripts/advpt/ablate_vectors.sh shapes 16 tiny
source "$(dirname "${BASH_SOURCE[0]}")/../ablation.sh"
ablation advpt_vectors AdvPT "$@"
sweep TRAINER.ADVPT.N_CTX "1 2 4 8 16 32 50"
curve TRAINER.ADVPT.N_CTX
