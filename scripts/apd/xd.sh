#!/usr/bin/env bash
# APD, cross-dataset: bash scripts/apd/xd.sh SOURCE SHOTS [CFG] [KEY VALUE ...]
#   bash scripts/apd/xd.sh imagenet 16
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
cross_dataset APD "$@"
