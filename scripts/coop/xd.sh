#!/usr/bin/env bash
# CoOp, trained on clean images, cross-dataset:
#   bash scripts/coop/xd.sh SOURCE SHOTS [CFG] [KEY VALUE ...]
#   bash scripts/coop/xd.sh imagenet 16
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
cross_dataset CoOp "$@"
