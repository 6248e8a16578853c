#!/usr/bin/env bash
# FAP, domain shift: bash scripts/fap/dg.sh SOURCE SHOTS [CFG] [KEY VALUE ...]
#   bash scripts/fap/dg.sh imagenet 16
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
domain_shift FAP "$@"
