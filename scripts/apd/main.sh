#!/usr/bin/env bash
# APD, few-shot: bash scripts/apd/main.sh DATASET SHOTS [CFG] [KEY VALUE ...]
#   bash scripts/apd/main.sh pets 16
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
few_shot APD "$@"
