#!/usr/bin/env bash
# Zero-shot CLIP on the first half of the classes and on the other:
#   bash scripts/zsclip/base2new.sh DATASET [CFG] [KEY VALUE ...]
# Nothing is drawn or trained, so one seed says all.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
zero_shot base_to_new "$@"
