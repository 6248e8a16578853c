#!/usr/bin/env bash
# MaPLe, trained on clean images, domain shift:
#   bash scripts/maple/dg.sh SOURCE SHOTS [CFG] [KEY VALUE ...]
#   bash scripts/maple/dg.sh imagenet 16
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
domain_shift MaPLe "$@"
