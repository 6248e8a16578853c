#!/usr/bin/env bash
# TeCoA, visual prompts; the configs *_finetune train the image tower, cross-dataset:
#   bash scripts/tecoa/xd.sh SOURCE SHOTS [CFG] [KEY VALUE ...]
#   bash scripts/tecoa/xd.sh imagenet 16
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
cross_dataset TeCoA "$@"
