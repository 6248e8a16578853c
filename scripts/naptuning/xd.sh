#!/usr/bin/env bash
# NAP-Tuning, cross-dataset: bash scripts/naptuning/xd.sh SOURCE SHOTS [CFG] [KEY VALUE ...]
#   bash scripts/naptuning/xd.sh imagenet 16
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
cross_dataset NAPTuning "$@"
