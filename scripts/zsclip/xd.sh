#!/usr/bin/env bash
# Zero-shot CLIP on the data sets of the cross-dataset tables:
#   bash scripts/zsclip/xd.sh SOURCE [CFG] [KEY VALUE ...]
# Nothing is drawn or trained, so that these are plain zero-shot tests and one seed says all.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
zero_shot cross_dataset "$@"
