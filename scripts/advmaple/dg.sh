#!/usr/bin/env bash
# AdvMaPLe, domain shift: bash scripts/advmaple/dg.sh SOURCE SHOTS [CFG] [KEY VALUE ...]
#   bash scripts/advmaple/dg.sh imagenet 16
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
domain_shift AdvMaPLe "$@"
