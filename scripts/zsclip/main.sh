#!/usr/bin/env bash
# Zero-shot CLIP, the undefended baseline: bash scripts/zsclip/main.sh DATASET [CFG] [KEY VALUE ...]
#   bash scripts/zsclip/main.sh pets
# Nothing is drawn or trained, so one seed says all.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
zero_shot few_shot "$@"
