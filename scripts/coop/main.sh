#!/usr/bin/env bash
# CoOp, trained on clean images, few-shot: bash scripts/coop/main.sh DATASET SHOTS [CFG] [KEY VALUE ...]
#   bash scripts/coop/main.sh pets 16
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
few_shot CoOp "$@"
