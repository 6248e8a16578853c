#!/usr/bin/env bash
# Zero-shot CLIP on the first half of the classes and on the other:
#   bash scripts/zsclip/base2new.sh DATASET [CFG] [KEY VALUE ...]
# Nothing is drawn or trained, so one seed says all.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
SEEDS=${SEEDS%% *}
[ $# -ge 1 ] || fail "usage: bash $0 DATASET [CFG] [KEY VALUE ...]"
dataset=$1; shift
if [[ ${1:-} =~ ^[0-9]+$ ]]; then shift; fi # shots mean nothing here
base_to_new ZeroshotCLIP "$dataset" 0 "$@"
