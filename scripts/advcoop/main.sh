#!/usr/bin/env bash
# AdvCoOp (APT), few-shot: bash scripts/advcoop/main.sh DATASET SHOTS [CFG] [KEY VALUE ...]
#   bash scripts/advcoop/main.sh pets 16
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
few_shot AdvCoOp "$@"
