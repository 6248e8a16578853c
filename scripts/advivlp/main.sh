#!/usr/bin/env bash
# AdvIVLP, few-shot: bash scripts/advivlp/main.sh DATASET SHOTS [CFG] [KEY VALUE ...]
#   bash scripts/advivlp/main.sh pets 16
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
few_shot AdvIVLP "$@"
