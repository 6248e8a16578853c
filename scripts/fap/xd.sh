#!/usr/bin/env bash
# FAP, cross-dataset: bash scripts/fap/xd.sh SOURCE SHOTS [CFG] [KEY VALUE ...]
#   bash scripts/fap/xd.sh imagenet 16
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
cross_dataset FAP "$@"
