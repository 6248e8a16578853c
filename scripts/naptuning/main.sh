#!/usr/bin/env bash
# NAP-Tuning, few-shot: bash scripts/naptuning/main.sh DATASET SHOTS [CFG] [KEY VALUE ...]
#   bash scripts/naptuning/main.sh pets 16
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
few_shot NAPTuning "$@"
