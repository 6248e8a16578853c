#!/usr/bin/env bash
# APD over what its teacher is: learning beside the student, tuned before it, or zero-shot CLIP:
#   bash scripts/apd/ablate_teacher.sh DATASET SHOTS [CFG] [KEY VALUE ...]
#   bash scripts/apd/ablate_teacher.sh shapes 16 tiny_robust
source "$(dirname "${BASH_SOURCE[0]}")/../ablation.sh"
ablation apd_teacher APD "$@"
sweep TRAINER.APD.TEACHER "online offline zero_shot"
curve TRAINER.APD.TEACHER
