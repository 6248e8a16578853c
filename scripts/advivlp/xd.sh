#!/usr/bin/env bash
# AdvIVLP, cross-dataset: bash scripts/advivlp/xd.sh SOURCE SHOTS [CFG] [KEY VALUE ...]
#   bash scripts/advivlp/xd.sh imagenet 16
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
cross_dataset AdvIVLP "$@"
