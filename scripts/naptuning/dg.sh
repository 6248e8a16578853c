#!/usr/bin/env bash
# NAP-Tuning, domain shift: bash scripts/naptuning/dg.sh SOURCE SHOTS [CFG] [KEY VALUE ...]
#   bash scripts/naptuning/dg.sh imagenet 16
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
domain_shift NAPTuning "$@"
