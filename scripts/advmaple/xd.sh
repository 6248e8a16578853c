#!/usr/bin/env bash
# AdvMaPLe, cross-dataset: bash scripts/advmaple/xd.sh SOURCE SHOTS [CFG] [KEY VALUE ...]
#   bash scripts/advmaple/xd.sh imagenet 16
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
cross_dataset AdvMaPLe "$@"
