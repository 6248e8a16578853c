#!/usr/bin/env bash
# CAPT, few-shot: bash scripts/capt/main.sh DATASET SHOTS [CFG] [KEY VALUE ...]
#   bash scripts/capt/main.sh pets 16
source "$(dirname "${BASH_SOURCE[0]}")/epochs.sh"
few_shot CAPT "$@" ${epochs[@]+"${epochs[@]}"}
