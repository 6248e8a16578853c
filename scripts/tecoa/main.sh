#!/usr/bin/env bash
# TeCoA, visual prompts; the configs *_finetune train the image tower, few-shot: bash scripts/tecoa/main.sh DATASET SHOTS [CFG] [KEY VALUE ...]
#   bash scripts/tecoa/main.sh pets 16
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
few_shot TeCoA "$@"
