#!/usr/bin/env bash
# AdvPT, cross-dataset: bash scripts/advpt/xd.sh SOURCE SHOTS [CFG] [KEY VALUE ...]
#   bash scripts/advpt/xd.sh imagenet 16
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
cross_dataset AdvPT "$@"
