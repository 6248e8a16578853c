#!/usr/bin/env bash
# CoOp, trained on clean images, domain shift:
#   bash scripts/coop/dg.sh SOURCE SHOTS [CFG] [KEY VALUE ...]
#   bash scripts/coop/dg.sh imagenet 16
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
domain_shift CoOp "$@"
