#!/usr/bin/env bash
# AdvCoOp (APT), domain shift: bash scripts/advcoop/dg.sh SOURCE SHOTS [CFG] [KEY VALUE ...]
#   bash scripts/advcoop/dg.sh imagenet 16
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
domain_shift AdvCoOp "$@"
