#!/usr/bin/env bash
# TeCoA, visual prompts; the configs *_finetune train the image tower, domain shift:
#   bash scripts/tecoa/dg.sh SOURCE SHOTS [CFG] [KEY VALUE ...]
#   bash scripts/tecoa/dg.sh imagenet 16
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
domain_shift TeCoA "$@"
