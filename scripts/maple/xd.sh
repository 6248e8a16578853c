#!/usr/bin/env bash
# MaPLe, trained on clean images, cross-dataset:
#   bash scripts/maple/xd.sh SOURCE SHOTS [CFG] [KEY VALUE ...]
#   bash scripts/maple/xd.sh imagenet 16
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
cross_dataset MaPLe "$@"
