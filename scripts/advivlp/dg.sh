#!/usr/bin/env bash
# AdvIVLP, domain shift: bash scripts/advivlp/dg.sh SOURCE SHOTS [CFG] [KEY VALUE ...]
#   bash scripts/advivlp/dg.sh imagenet 16
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
domain_shift AdvIVLP "$@"
