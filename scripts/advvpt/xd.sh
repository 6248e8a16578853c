#!/usr/bin/env bash
# AdvVPT, cross-dataset: bash scripts/advvpt/xd.sh SOURCE SHOTS [CFG] [KEY VALUE ...]
#   bash scripts/advvpt/xd.sh imagenet 16
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
cross_dataset AdvVPT "$@"
