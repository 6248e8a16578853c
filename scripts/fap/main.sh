#!/usr/bin/env bash
# FAP, few-shot: bash scripts/fap/main.sh DATASET SHOTS [CFG] [KEY VALUE ...]
#   bash scripts/fap/main.sh pets 16
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
few_shot FAP "$@"
