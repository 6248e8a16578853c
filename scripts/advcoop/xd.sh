#!/usr/bin/env bash
# AdvCoOp (APT), cross-dataset: bash scripts/advcoop/xd.sh SOURCE SHOTS [CFG] [KEY VALUE ...]
#   bash scripts/advcoop/xd.sh imagenet 16
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
cross_dataset AdvCoOp "$@"
