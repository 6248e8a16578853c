#!/usr/bin/env bash
# CAPT, cross-dataset: bash scripts/capt/xd.sh SOURCE SHOTS [CFG] [KEY VALUE ...]
#   bash scripts/capt/xd.sh imagenet 16
source "$(dirname "${BASH_SOURCE[0]}")/epochs.sh"
cross_dataset CAPT "$@" ${epochs[@]+"${epochs[@]}"}
