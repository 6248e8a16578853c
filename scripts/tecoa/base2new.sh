#!/usr/bin/env bash
# TeCoA, visual prompts; the configs *_finetune train the image tower, base-to-novel: bash scripts/tecoa/base2new.sh DATASET SHOTS [CFG] [KEY VALUE ...]
#   bash scripts/tecoa/base2new.sh pets 16
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
base_to_new TeCoA "$@"
