#!/usr/bin/env bash
# AdvVPT, domain shift: bash scripts/advvpt/dg.sh SOURCE SHOTS [CFG] [KEY VALUE ...]
#   bash scripts/advvpt/dg.sh imagenet 16
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
domain_shift AdvVPT "$@"
