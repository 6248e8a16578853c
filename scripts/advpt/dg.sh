#!/usr/bin/env bash
# AdvPT, domain shift: bash scripts/advpt/dg.sh SOURCE SHOTS [CFG] [KEY VALUE ...]
#   bash scripts/advpt/dg.sh imagenet 16
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
domain_shift AdvPT "$@"
