#!/usr/bin/env bash
# APD, domain shift: bash scripts/apd/dg.sh SOURCE SHOTS [CFG] [KEY VALUE ...]
#   bash scripts/apd/dg.sh imagenet 16
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
domain_shift APD "$@"
