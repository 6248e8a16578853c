#!/usr/bin/env bash
# Zero-shot CLIP on the data sets of the domain shift tables:
#   bash scripts/zsclip/dg.sh SOURCE [CFG] [KEY VALUE ...]
# Nothing is drawn or trained, so that these are plain zero-shot tests and one seed says all.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
zero_shot domain_shift "$@"
