#!/usr/bin/env bash
# MaPLe, trained on clean images, few-shot: bash scripts/maple/main.sh DATASET SHOTS [CFG] [KEY VALUE ...]
#   bash scripts/maple/main.sh pets 16
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
few_shot MaPLe "$@"
