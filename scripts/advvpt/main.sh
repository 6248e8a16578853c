#!/usr/bin/env bash
# AdvVPT, few-shot: bash scripts/advvpt/main.sh DATASET SHOTS [CFG] [KEY VALUE ...]
#   bash scripts/advvpt/main.sh pets 16
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
few_shot AdvVPT "$@"
