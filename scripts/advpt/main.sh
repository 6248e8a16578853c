#!/usr/bin/env bash
# AdvPT, few-shot: bash scripts/advpt/main.sh DATASET SHOTS [CFG] [KEY VALUE ...]
#   bash scripts/advpt/main.sh pets 16
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
few_shot AdvPT "$@"
