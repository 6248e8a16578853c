#!/usr/bin/env bash
# CAPT, domain shift: bash scripts/capt/dg.sh SOURCE SHOTS [CFG] [KEY VALUE ...]
#   bash scripts/capt/dg.sh imagenet 16
source "$(dirname "${BASH_SOURCE[0]}")/epochs.sh"
domain_shift CAPT "$@" ${epochs[@]+"${epochs[@]}"}
