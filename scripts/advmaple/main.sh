#!/usr/bin/env bash
# AdvMaPLe, few-shot: bash scripts/advmaple/main.sh DATASET SHOTS [CFG] [KEY VALUE ...]
#   bash scripts/advmaple/main.sh pets 16
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
few_shot AdvMaPLe "$@"
